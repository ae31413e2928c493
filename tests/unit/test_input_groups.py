"""Graph inputs in named groups: one definition, which everything from the export to the loop follows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.fp8.calibration import CallRecorder
from export.graphs.signature import Values
from export.graphs.transformer import Transformer
from export.onnx.jobs import Component, Graph
from export.onnx.onnx_export import check_parity, export_onnx
from export.onnx.run import PlannedEngine, manifest_of
from export.pytorch.engine import ModuleEngine
from export.pytorch.pipeline import stream_sizes
from export.tensorrt.engine_build import build_plan
from streaming.cache.attention_bias import visible
from streaming.conditioning.conditions import Conditions
from streaming.engines.engine import OrtEngine, TorchEngine
from streaming.engines.manifest import AxisRange
from streaming.engines.records import EngineError
from streaming.engines.served import require_known_inputs
from streaming.memory.plan import activation_bytes
from streaming.network.inputs import GROUPS, InputGroup, TensorSpec, group_of
from streaming.network.transformer import TransformerCall
from streaming.specs import KREA_REALTIME_VIDEO
from tests.random_weights import randomized
from tests.tiny_pipeline import CONFIG, chunk, encode_prompts, modules, tiny_pipeline

FRAME_TOKENS, CACHE_TOKENS = 2, 4
SIZES = {"F": 2, "T": 2 * FRAME_TOKENS, "S+T": CACHE_TOKENS + 2 * FRAME_TOKENS}
# What graphs were given before inputs had groups: engines of that time are still in use.
BEFORE = ("tokens", "time_sin", "key_bias", "rope_cos", "rope_sin")
LAYERS = ("cross_kv_00", "cross_kv_01", "kv_00", "kv_01")


def toy_values(call: TransformerCall) -> tuple[Tensor]:
    return (torch.full(call.timestep.shape[1:], call.conditions.past_weight),)


TOY = InputGroup("toy", (TensorSpec("gain", ("F",), float32=True),), toy_values)


class ToyTransformer(Transformer):
    """Multiplies the flow of each latent frame by a number of a group that the product does not have."""

    @property
    def groups(self) -> set[str]:
        return super().groups | {"toy"}

    def forward(  # type: ignore[override]
        self, tokens: Values, rope: Values, cross: Values, cache: Values, toy: Values
    ) -> tuple[Tensor, ...]:
        flow, *new_kv = super().forward(tokens, rope, cross, cache)
        (gain,) = toy
        frames = flow.reshape(flow.shape[0], gain.shape[0], -1, flow.shape[2])
        return ((frames * gain[:, None, None]).reshape(flow.shape), *new_kv)


@pytest.fixture
def toy_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one line of the definition."""
    monkeypatch.setitem(GROUPS, "toy", TOY)
    return


@pytest.fixture
def toy(toy_group: None) -> ToyTransformer:
    return randomized(ToyTransformer(CONFIG), 1)


def a_call(past_weight: float) -> TransformerCall:
    generator = torch.Generator().manual_seed(3)

    def layers(tokens: int) -> tuple[Tensor, ...]:
        shape = (2, 1, tokens, CONFIG.num_heads, CONFIG.head_dim)
        return tuple(torch.randn(shape, generator=generator) for _ in range(CONFIG.num_layers))

    return TransformerCall(
        sizes=stream_sizes(CONFIG),
        latents=torch.randn(1, 2, CONFIG.in_dim, 2, 4, generator=generator),
        timestep=torch.full((1, 2), 500.0),
        positions=range(2, 4),
        conditions=Conditions(layers(CONFIG.text_len), past_weight),
        kv=layers(CACHE_TOKENS),
        key_bias=visible(range(CACHE_TOKENS), CACHE_TOKENS, 2 * FRAME_TOKENS),
    )


def test_a_new_group_reaches_the_onnx_file_and_its_calls(toy: ToyTransformer, tmp_path: Path) -> None:
    signature, path = toy.signature(CACHE_TOKENS), tmp_path / "model.onnx"

    export_onnx(toy, signature, SIZES, path)

    check_parity(path, toy, signature, SIZES)
    engine, plain = OrtEngine(path, threads=1), ModuleEngine(*plain_transformer())
    assert engine.inputs == (*BEFORE, *LAYERS, "gain")
    for gain in (1.0, 3.0):
        flow = engine.run(a_call(gain).inputs(engine.inputs), ["flow"])["flow"]
        expected = plain.run(a_call(gain).inputs(plain.inputs), ["flow"])["flow"]
        torch.testing.assert_close(flow, gain * expected, rtol=1e-4, atol=1e-5)


def plain_transformer() -> tuple[Transformer, Any]:
    """With the weights of the toy."""
    transformer = randomized(Transformer(CONFIG), 1)
    return transformer, transformer.signature(CACHE_TOKENS)


def test_a_new_group_reaches_manifest_and_tensorrt_profile(toy: ToyTransformer, tmp_path: Path) -> None:
    signature = toy.signature(CACHE_TOKENS)
    ends = {axis: AxisRange(min=size // 2, opt=size, max=2 * size) for axis, size in SIZES.items()}
    graph = Graph("transformer", "toy", lambda _: (toy, signature), SIZES, (ends,), {"form": "portable"})
    component = Component((), "fp32", lambda: None, lambda: None, lambda: None, (graph,))  # type: ignore[arg-type,return-value]

    manifest = manifest_of(PlannedEngine("toy", "", component, (), graph), signature, (), None)
    (profile,) = build_plan(tmp_path, manifest.model_copy(update={"files": ()}), tmp_path / "cache").profiles

    assert manifest.inputs[-1].model_dump() == {"name": "gain", "shape": ("F",), "dtype": "float32"}
    assert (profile["gain"].min, profile["gain"].opt, profile["gain"].max) == ((1,), (2,), (4,))
    assert activation_bytes(manifest) > 0


def test_a_new_group_follows_what_conditions_a_chunk_and_is_recorded_for_calibration(
    toy: ToyTransformer, tmp_path: Path
) -> None:
    pipeline = tiny_pipeline(spec=KREA_REALTIME_VIDEO)  # a pipeline with the parameter that the toy follows
    recorder = CallRecorder(ModuleEngine(toy, toy.signature(0)), tmp_path)
    engines = replace(pipeline.model.engines, transformer=recorder)
    pipeline.model = replace(pipeline.model, engines=engines)

    pictures = []
    for weight in (1.0, 0.5):
        first, _ = chunk(pipeline.open_stream(), kv_cache_attention_bias=weight)
        pictures.append(first)

    gains = [float(np.load(file)["gain"][0]) for file in recorder.files]
    assert gains == [1.0, 1.0, 0.5, 0.5]  # two steps each
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("unroped_cache", [False, True], ids=["roped", "unroped"])
def test_engines_exported_before_there_were_groups_are_called_as_ever(unroped_cache: bool) -> None:
    transformer, text_kv, _ = modules("wan", torch.float32, unroped_cache)
    rope_k = ("rope_k_cos", "rope_k_sin") if unroped_cache else ()

    signature = transformer.signature("S")

    assert tuple(spec.name for spec in signature.inputs) == (*BEFORE, *rope_k, *LAYERS)
    assert tuple(spec.name for spec in signature.outputs) == ("flow", "new_kv_00", "new_kv_01")
    assert tuple(spec.name for spec in text_kv.signature().outputs) == LAYERS[:2]
    assert tuple(a_call(1.0).inputs((*BEFORE, *rope_k, *LAYERS))) == (*BEFORE, *rope_k, *LAYERS)


def test_every_input_has_its_group() -> None:
    assert list(map(group_of, (*BEFORE, "rope_k_cos", *LAYERS))) == [
        *("tokens", "tokens", "tokens", "rope", "rope", "rope_k"),
        *("cross", "cross", "cache", "cache"),
    ]
    assert group_of("cache_07") == "cache"
    assert group_of("kv_x") is None


def test_an_engine_of_another_version_is_refused_with_the_command_that_exports_it_again() -> None:
    engine = TorchEngine(lambda *_: (), (*BEFORE, *LAYERS, "gain"), ("flow",))

    with pytest.raises(EngineError, match=r"Engine 'x' takes inputs .*: gain\. .* wanstream-export longlive"):
        require_known_inputs("x", engine, "longlive")


def test_prompts_reach_the_graph_through_the_conditions_alone() -> None:
    pipeline = tiny_pipeline()
    embedding = encode_prompts(["a boat"])[0]
    expected = pipeline.model.cross_kv(embedding)
    stream = pipeline.open_stream()

    chunk(stream)

    conditions: Conditions = stream.session.conditions  # type: ignore[attr-defined]
    assert conditions.past_weight == 1.0
    assert all(torch.equal(a, b) for a, b in zip(conditions.cross_kv, expected, strict=True))
