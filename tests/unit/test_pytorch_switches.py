"""What makes PyTorch faster on a GPU changes no number: as far as a machine without one can tell."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from export.graphs import layers
from export.graphs.vae_graphs import DecoderGraph, EncoderGraph
from export.pytorch import pipeline as pipeline_module
from export.pytorch.cuda_graph import GraphedCall, Recording
from export.pytorch.engine import Call
from export.pytorch.faster import NOTHING, channels_innermost, fused
from export.pytorch.pipeline import stream_model
from streaming.engines.engine import Engine, EngineWrapper
from streaming.engines.load_plan import TorchSwitches
from streaming.network.inputs import KEY_BIAS
from streaming.specs import LONGLIVE, SPECS, CachedKeys, PipelineSpec
from streaming.triton.model_pipeline import ModelPipeline
from streaming.triton.sessions import Images
from tests.random_weights import randomized
from tests.tiny_pipeline import HEIGHT, VAES, WIDTH, chunk, encode_prompts, modules

WITH_MODELS = [spec for spec in SPECS.values() if spec.loop is not None]
CHUNKS = ({"prompts": "a"}, {}, {}, {}, {"prompts": "b"}, {})


class MemoryRecorder:
    """A recorder that keeps what CUDA graphs keep: one memory for the results of every call."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, function: Callable[[], Sequence[Tensor]]) -> Recording:
        self.recorded += 1
        outputs = [result.clone() for result in function()]

        def play() -> None:
            for output, result in zip(outputs, function(), strict=True):
                output.copy_(result)

        return Recording(play, outputs)


def pipeline(
    spec: PipelineSpec = LONGLIVE,
    switches: TorchSwitches = NOTHING,
    watch: Callable[[Engine], Engine] = lambda engine: engine,
) -> ModelPipeline:
    """Tiny networks in the model that the backend makes."""
    assert spec.loop is not None
    transformer, text_kv, vae = modules("wan", torch.float32, spec.loop.cached_keys is CachedKeys.UNROTATED)
    size = (HEIGHT, WIDTH)
    model = stream_model(
        spec.loop, transformer, text_kv, vae, encode_prompts, size, switches=switches, watch=watch
    )
    return ModelPipeline(spec, model, 42)


def pictures(made: ModelPipeline) -> list[Images]:
    stream = made.open_stream()
    parameters: dict[str, object] = {}
    found = []
    for changes in CHUNKS:
        parameters |= changes
        found.append(chunk(stream, **parameters)[0])
    return found


class Biases(EngineWrapper):
    """Counts the calls with a bias and those without."""

    def __init__(self, engine: Engine, counts: dict[bool, int]) -> None:
        super().__init__(engine)
        self._counts = counts

    def run(self, inputs, outputs):  # type: ignore[no-untyped-def]
        given = KEY_BIAS in inputs
        self._counts[given] = self._counts.get(given, 0) + 1
        return super().run(inputs, outputs)


@pytest.mark.parametrize("spec", WITH_MODELS, ids=lambda spec: spec.id)
def test_a_bias_that_hides_nothing_may_be_left_out(spec: PipelineSpec) -> None:
    counts: dict[bool, int] = {}
    spare = NOTHING.model_copy(update={"spare_bias": True})

    without = pictures(pipeline(spec, spare, lambda engine: Biases(engine, counts)))

    for expected, actual in zip(pictures(pipeline(spec)), without, strict=True):
        assert np.abs(expected.astype(int) - actual.astype(int)).max() <= 1
    assert counts[True] > 0  # the first chunks hide empty slots
    if spec.id == LONGLIVE.id:
        assert counts[False] > counts[True] // 4  # the window is full from the fourth chunk on


def test_recorded_calls_make_the_same_pictures_for_two_sessions_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another recorder than CUDA's, but with what CUDA's does: one memory for all calls of a shape."""
    recorder = MemoryRecorder()

    def recording(switches: TorchSwitches, most_tokens: int) -> Callable[[Call], Call]:
        return lambda call: GraphedCall(call, recorder, most_tokens)

    plain = pipeline()
    expected = pictures(plain), pictures(plain)[:2]
    monkeypatch.setattr(pipeline_module, "faster_calls", recording)
    graphed = pipeline()
    one, other = graphed.open_stream(), graphed.open_stream()
    parameters: dict[str, object] = {}
    for number, changes in enumerate(CHUNKS):
        parameters |= changes
        np.testing.assert_array_equal(chunk(one, **parameters)[0], expected[0][number])
        if number < len(expected[1]):
            np.testing.assert_array_equal(chunk(other, prompts="a")[0], expected[1][number])

    assert 1 <= recorder.recorded <= 2  # one shape: what comes once, as a recache, is not recorded


def test_caches_are_copied_to_a_recording_only_after_they_were_written_to() -> None:
    copies: list[int] = []

    class Watched(torch.Tensor):
        """Counts what is copied to it."""

        def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
            copies.append(1)
            return super().copy_(source, non_blocking)

    call = GraphedCall(lambda tokens, cache: [tokens + cache.sum()], MemoryRecorder(), most_tokens=4)
    tokens, cache = torch.zeros(1, 4), torch.ones(2)
    for _ in range(2):  # the second one records
        call(tokens, cache)
    for held in call._inputs.values():
        held.value = held.value.as_subclass(Watched)

    assert call(tokens, cache)[0].sum() == 8
    assert not copies
    cache += 1  # in place, as a ring is written
    assert call(tokens, cache)[0].sum() == 16
    assert len(copies) == 1
    assert call(tokens, torch.ones(2))[0].sum() == 8  # another stream's
    with torch.inference_mode():
        made = torch.full((2,), 5.0)  # nobody can tell whether it was written to
        call(tokens, made)
        made += 1
        assert call(tokens, made)[0].sum() == 48


def test_longer_calls_are_not_recorded() -> None:
    recorder = MemoryRecorder()
    call = GraphedCall(lambda tokens: [tokens + 1], recorder, most_tokens=4)

    for _ in range(3):
        assert call(torch.zeros(1, 5))[0].sum() == 5

    assert recorder.recorded == 0


def test_fused_functions_are_compiled_alone_and_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a compiler without a back end, which traces them as the one for GPUs does."""
    names: list[str] = []

    def compiler(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        names.append(function.__name__)
        return torch.compile(function, backend="aot_eager")

    monkeypatch.setattr(layers, "compiled", compiler)
    for unroped in (False, True):
        call, inputs = transformer_call(unroped)
        with torch.inference_mode():
            expected, actual = call(*inputs), fused(call)(*inputs)
        for one, other in zip(expected, actual, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    assert set(names) == {"norm_and_rotate", "rms_norm", "add_gated", "norm_and_modulate", "rotate"}
    assert len(names) == len(set(names))  # each once, however many layers call it


def transformer_call(unroped: bool) -> tuple[Call, list[Tensor]]:
    """The tiny transformer's call, and inputs for it."""
    transformer = modules("wan", torch.float32, unroped)[0]
    signature = transformer.signature("S")
    generator = torch.Generator().manual_seed(0)
    sizes = {"F": 3, "T": 6, "S": 8, "S+T": 14, "B": 1}
    inputs = [torch.randn(t.shape, generator=generator) for t in signature.example(sizes)]

    def call(*values: Tensor | None) -> Sequence[Tensor]:
        return list(transformer(**signature.arguments(values)))

    return call, inputs


@pytest.mark.parametrize("vae_type", VAES)
def test_channels_innermost_change_the_layout_and_no_number(vae_type: str) -> None:
    plain, laid_out = (randomized(VAES[vae_type](), 3) for _ in range(2))
    channels_innermost(laid_out)
    generator = torch.Generator().manual_seed(0)
    for graph in (EncoderGraph, DecoderGraph):
        expected, actual = graph(plain, False), graph(laid_out, False)
        signature = expected.signature(HEIGHT, WIDTH)
        values = [torch.randn(t.shape, generator=generator) for t in signature.example({"F": 1, "T": 4})]
        inputs = signature.arguments(values)
        with torch.inference_mode():
            for one, other in zip(expected(**inputs), actual(**inputs), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    convolutions = [w for w in laid_out.parameters() if w.ndim >= 4 and w.shape[2:].numel() > 1]
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    assert convolutions
    assert all(w.is_contiguous(memory_format=formats[w.ndim]) for w in convolutions)
