"""What is exported for a request: one transformer for all sizes, autoencoders by size, precisions."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from export.onnx.jobs import Component, Request, components
from export.onnx.onnx_export import export_onnx
from export.onnx.run import parity_sizes, plan
from streaming.engines.manifest import AxisRange
from tests.engines import small_request

TWO_SIZES = ((64, 80), (80, 96))


@pytest.fixture
def request_of_two(tmp_path: Path) -> Request:
    return replace(small_request(tmp_path / "models"), sizes=TWO_SIZES)


def kinds(parts: tuple[Component, ...]) -> list[str]:
    return [graph.kind for part in parts for graph in part.graphs]


def test_sizes_share_all_engines_but_the_autoencoders(request_of_two: Request) -> None:
    parts = components(request_of_two)

    names = [engine.name for part in parts for engine in plan(part)]
    assert [kinds(parts).count(kind) for kind in ("text_encoder", "text_kv", "transformer")] == [1, 1, 1]
    assert sum("_64x80_" in name for name in names) == sum("_80x96_" in name for name in names) == 4
    assert len(set(names)) == 11


def test_a_transformer_for_two_sizes_has_a_profile_for_each(request_of_two: Request) -> None:
    transformer = components(request_of_two)[1].graphs[0]

    # A window of seven latent frames: four are cached; a recache computes all seven at once.
    assert [profile["F"] for profile in transformer.profiles] == [AxisRange(min=1, opt=3, max=7)] * 2
    assert [profile["T"].opt for profile in transformer.profiles] == [3 * 20, 3 * 30]
    assert [profile["S"] for profile in transformer.profiles] == [
        AxisRange(min=80, opt=80, max=80),
        AxisRange(min=120, opt=120, max=120),
    ]
    assert [profile["S+T"].max for profile in transformer.profiles] == [(4 + 7) * 20, (4 + 7) * 30]
    assert transformer.facts["cache_tokens"] is None


def test_parity_is_checked_for_the_smallest_and_the_usual_call_of_each_size(request_of_two: Request) -> None:
    transformer = components(request_of_two)[1].graphs[0]

    assert [sizes["T"] for sizes in parity_sizes(transformer)] == [20, 60, 30, 90]


def test_autoencoders_of_a_bfloat16_export_stay_float32(request_of_two: Request) -> None:
    parts = components(replace(request_of_two, precision="bf16"))

    assert [part.precision for part in parts] == ["bf16", "bf16", "fp32"]


@pytest.mark.parametrize(
    ("precision", "elem_type"), [("bf16", onnx.TensorProto.BFLOAT16), ("fp16", onnx.TensorProto.FLOAT16)]
)
def test_a_graph_of_half_precision_is_valid_and_takes_half_precision(
    request_of_two: Request, tmp_path: Path, precision: str, elem_type: int
) -> None:
    part = components(replace(request_of_two, precision="bf16" if precision == "bf16" else "fp16"))[1]
    module, signature = part.graphs[1].build(part.load())
    dtype = next(module.parameters()).dtype

    export_onnx(module, signature, {}, tmp_path / "model.onnx", dtype)

    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    tensors = (*graph.input, *graph.output)
    assert {tensor.type.tensor_type.elem_type for tensor in tensors} == {elem_type}
