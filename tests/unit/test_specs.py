import subprocess
import sys

import pytest

from streaming.specs import (
    KREA_REALTIME_VIDEO,
    LONGLIVE,
    PASSTHROUGH,
    SPECS,
    TEMPORAL_FACTOR,
    PipelineSpec,
    SizeRange,
)

ALL = list(SPECS.values())
MODELS = [spec for spec in ALL if spec.loop is not None]


def test_pipelines_come_in_the_order_of_scopes_drop_down() -> None:
    assert list(SPECS) == [
        "streamdiffusionv2",
        "longlive",
        "krea-realtime-video",
        "reward-forcing",
        "memflow",
        "passthrough",
    ]


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.id)
def test_default_size_is_valid_for_its_own_pipeline(spec: PipelineSpec) -> None:
    sizes = [(spec.height, spec.width)]
    sizes += [(d.height, d.width) for d in spec.mode_defaults.values() if d.height and d.width]

    for height, width in sizes:
        assert (spec.size.nearest(height), spec.size.nearest(width)) == (height, width)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.id)
def test_modes_are_consistent(spec: PipelineSpec) -> None:
    assert spec.default_mode in spec.modes
    assert set(spec.mode_defaults) <= set(spec.modes)


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.id)
def test_a_chunk_of_input_video_fills_the_chunk_of_latent_frames(spec: PipelineSpec) -> None:
    assert spec.loop is not None
    assert spec.input_frames_per_chunk == spec.loop.frames_per_chunk * TEMPORAL_FACTOR
    assert spec.video_frames_per_request == spec.input_frames_per_chunk


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.id)
def test_sink_context_and_chunk_fit_the_attention_window(spec: PipelineSpec) -> None:
    loop = spec.loop
    assert loop is not None
    assert loop.sink_size + loop.context_frames + loop.frames_per_chunk <= loop.local_attn_size


@pytest.mark.parametrize(("window", "context"), [(4, 1), (5, 2), (6, 3), (7, 3)])
def test_a_recomputed_cache_takes_what_the_window_leaves(window: int, context: int) -> None:
    assert KREA_REALTIME_VIDEO.loop is not None

    loop = KREA_REALTIME_VIDEO.loop.with_window(window)

    assert (loop.local_attn_size, loop.context_frames) == (window, context)
    assert loop.context_pictures == 1 + 4 * (context - 1)


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.id)
def test_denoising_steps_descend(spec: PipelineSpec) -> None:
    lists = [spec.denoising_steps, *(d.denoising_steps for d in spec.mode_defaults.values())]

    for steps in lists:
        assert steps is not None
        assert sorted(set(steps), reverse=True) == list(steps)


def test_passthrough_takes_frames_one_by_one_and_has_no_model() -> None:
    assert (PASSTHROUGH.input_frames_per_chunk, PASSTHROUGH.video_frames_per_request) == (4, 1)
    assert PASSTHROUGH.loop is None
    assert PASSTHROUGH.max_sessions == 8


@pytest.mark.parametrize(
    ("size", "nearest"), [(0, 16), (16, 16), (23, 16), (24, 16), (25, 32), (2049, 2048), (10**9, 2048)]
)
def test_nearest_valid_size(size: int, nearest: int) -> None:
    assert SizeRange(16, 2048, 16).nearest(size) == nearest


def test_specs_can_be_keys() -> None:
    assert {LONGLIVE: 1}[SPECS["longlive"]] == 1


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "streaming.specs, gateway.pipelines.schemas, gateway.pipelines.load_params,"
            "gateway.stream.parameters.state",
            {"torch", "quart", "tritonclient"},
        ),
        (
            "gateway.stream.stream, gateway.stream.pictures.hub, gateway.stream.parts",
            {"torch", "aiortc", "tritonclient"},
        ),
    ],
    ids=["specs and validators", "a stream"],
)
def test_what_knows_neither_torch_nor_the_network(modules: str, absent: set[str]) -> None:
    code = f"import sys, {modules}; sys.exit(', '.join({absent!r} & set(sys.modules)) or 0)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
