"""The transformer's graphs can be exported; and the check that says so notices what breaks an export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.graphs.signature import Signature, example
from export.graphs.transformer import TextKV, Transformer
from streaming.checkpoints.config import TransformerConfig
from tests.random_weights import randomized
from tests.unit.graph_rules import assert_exportable

CONFIG = TransformerConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=16, text_dim=12, text_len=6, in_dim=4, out_dim=4
)
CACHE_TOKENS, FRAME_TOKENS = 10, 4


def arguments_of(signature: Signature, frames: int) -> dict[str, Any]:
    return signature.arguments(inputs(signature, frames))


def inputs(signature: Signature, frames: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(frames)
    new = frames * FRAME_TOKENS
    sizes = {"F": frames, "T": new, "S+T": CACHE_TOKENS + new}
    return tuple(torch.randn(zeros.shape, generator=generator) for zeros in signature.example(sizes))


@pytest.mark.parametrize("unroped_cache", [False, True], ids=["roped", "unroped"])
def test_the_transformer_exports_with_any_number_of_frames(unroped_cache: bool) -> None:
    transformer = randomized(Transformer(CONFIG, unroped_cache))
    signature = transformer.signature(CACHE_TOKENS)

    program = assert_exportable(transformer, arguments_of(signature, 3), signature.dynamic_shapes())

    for frames in (2, 4):
        arguments = arguments_of(signature, frames)
        torch.testing.assert_close(
            program.module()(**arguments), transformer(**arguments), rtol=1e-4, atol=1e-5
        )


def test_text_kv_exports() -> None:
    text_kv = randomized(TextKV(CONFIG))
    arguments = arguments_of(text_kv.signature(), 1)

    program = assert_exportable(text_kv, arguments)

    torch.testing.assert_close(program.module()(**arguments), text_kv(**arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unroped_cache", [False, True], ids=["roped", "unroped"])
def test_results_have_the_shapes_that_the_signature_says(unroped_cache: bool) -> None:
    transformer = randomized(Transformer(CONFIG, unroped_cache))
    signature = transformer.signature(CACHE_TOKENS)

    results = transformer(**arguments_of(signature, 2))

    expected = [example(spec, {"T": 2 * FRAME_TOKENS}).shape for spec in signature.outputs]
    assert [result.shape for result in results] == expected


def test_one_onnx_file_serves_one_to_four_frames_under_its_own_names(tmp_path: Path) -> None:
    transformer = randomized(Transformer(CONFIG))
    signature = transformer.signature(CACHE_TOKENS)
    names = [spec.name for spec in signature.inputs]

    torch.onnx.export(
        transformer,
        f=tmp_path / "transformer.onnx",
        kwargs=arguments_of(signature, 3),
        dynamo=True,
        verbose=False,
        opset_version=20,
        external_data=False,
        input_names=names,
        output_names=[spec.name for spec in signature.outputs],
        dynamic_shapes=signature.dynamic_shapes(),
    )

    session = onnxruntime.InferenceSession(tmp_path / "transformer.onnx", providers=["CPUExecutionProvider"])
    for frames in (1, 2, 3, 4):
        arguments = inputs(signature, frames)
        feed = {name: argument.numpy() for name, argument in zip(names, arguments, strict=True)}
        actual = [torch.from_numpy(result) for result in session.run(None, feed)]
        expected = transformer(**signature.arguments(arguments))
        torch.testing.assert_close(actual, list(expected), rtol=1e-4, atol=1e-5)


def test_a_bf16_graph_keeps_softmax_and_norm_statistics_in_float32() -> None:
    transformer = randomized(Transformer(CONFIG)).bfloat16()
    signature = transformer.signature(CACHE_TOKENS)
    arguments = tuple(
        value.to(zeros.dtype)
        for value, zeros in zip(
            inputs(signature, 2),
            signature.example({"F": 2, "T": 8, "S+T": 18}, torch.bfloat16),
            strict=True,
        )
    )

    program = assert_exportable(transformer, signature.arguments(arguments), signature.dynamic_shapes())

    sensitive = ("softmax", "rsqrt", "layer_norm")
    nodes = [n for n in program.graph.nodes if any(op in str(n.target) for op in sensitive)]
    assert {node.meta["val"].dtype for node in nodes} == {torch.float32}


class Apply(nn.Module):
    """A module that is one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def write_a_slice(x: Tensor) -> Tensor:
    y = x.clone()
    y[0] = 1.0
    return y


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x.double() + 1).float(), "float64"),
        (lambda x: torch.view_as_real(torch.view_as_complex(x) * 2), "complex"),
        (write_a_slice, "in place"),
        (lambda x: x.clone().mul_(2), "in place"),
        (lambda x: x.roll(1, 0), "do not export well"),
        (lambda x: x.scatter(0, torch.zeros(1, 2, dtype=torch.int64), x), "do not export well"),
    ],
    ids=["float64", "complex", "slice", "in place", "roll", "scatter"],
)
def test_the_check_notices_a_broken_rule(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_exportable(Apply(function), {"x": torch.ones(3, 2)})


def test_the_check_notices_python_that_depends_on_values() -> None:
    with pytest.raises(Exception, match="data-dependent"):
        assert_exportable(Apply(lambda x: x * 2 if x.sum() > 0 else x), {"x": torch.ones(3, 2)})
