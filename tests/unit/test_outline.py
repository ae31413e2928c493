"""Full-size engines without weights: numbers that the specification states, and loads that are refused."""

import json
import re
from math import prod
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.__main__ import main
from export.onnx.jobs import Request, components
from export.onnx.outline import Outline, outline
from export.onnx.run import plan
from export.onnx.store import EngineStore
from gateway.serving.interface import ServingError
from gateway.serving.load_plans import EngineLoad
from gateway.serving.memory import Memory
from streaming.memory.fit import Fit
from streaming.memory.plan import DoesNotFitError
from streaming.specs import SPECS
from tests.engines import load_plan, small_request

SIZES = ((512, 512), (320, 576))
TOKENS = {512: 1024, 320: 720}  # of a latent frame, by height
GB = 10**9


@pytest.fixture(scope="module")
def krea() -> Outline:
    return outline(Request("krea-realtime-video", Path("nowhere"), SIZES, precision="bf16"))


def test_krea_has_every_parameter_of_a_14b_model(krea: Outline) -> None:
    parts = [krea.manifests[name].bytes for name in (krea.engines.transformer, krea.engines.text_kv)]

    affine_norms = 40 * 2 * 5120  # norm3 stays in float32
    assert sum(parts) == 2 * (14_288_491_584 + affine_norms)
    assert (krea.engines.model.layers, krea.engines.model.heads, krea.engines.model.head_dim) == (40, 40, 128)


def test_the_transformer_takes_three_context_frames_and_the_padding_of_each_size(krea: Outline) -> None:
    manifest = krea.manifests[krea.engines.transformer]

    assert [profile["S"].opt for profile in manifest.profiles] == [3 * 1024 + 16, 3 * 720 + 16]
    assert [profile["T"].max for profile in manifest.profiles] == [4 * 1024, 4 * 720]
    assert len([t for t in manifest.inputs if t.name.startswith("kv_")]) == 40


@pytest.mark.parametrize("size", SIZES)
def test_the_memory_plan_has_the_cache_of_the_specification(krea: Outline, size: tuple[int, int]) -> None:
    memory = next(m for m in krea.memory() if (m.height, m.width) == size)

    tokens = 3 * TOKENS[size[0]] + 16  # half of the six frames of pipeline-krea-realtime-video.md 4.1
    assert memory.session["KV cache"] == 40 * 2 * tokens * 5120 * 2
    assert memory.session["cross attention"] == 40 * 2 * 512 * 5120 * 2
    assert 60 * GB < memory.total() < 141 * GB  # more than a card of 48 GB, less than an H200


@pytest.mark.parametrize("size", SIZES)
def test_a_card_that_is_too_small_is_refused_with_numbers(krea: Outline, size: tuple[int, int]) -> None:
    memory = next(m for m in krea.memory() if (m.height, m.width) == size)

    with pytest.raises(DoesNotFitError) as refusal:
        memory.check(24 * GB)

    assert f"{size[0]}x{size[1]}" in str(refusal.value)
    assert re.search(
        r"needs about \d+.* GB of GPU memory for one session, 24.0 GB are free", str(refusal.value)
    )


async def load_of(real: Outline, size: tuple[int, int], gpu_gb: int, **choices: object) -> Fit:
    """The gateway's decision about a load on a GPU of so many GB."""
    manifests = {name: real.manifests[name] for name in real.engines.engines(size)}

    async def used_and_total() -> tuple[int, int]:
        return 0, gpu_gb * GB

    plan = load_plan(
        EngineStore(Path("nowhere")), real.engines, height=size[0], width=size[1], gpus=(0,), loop=choices
    )
    loop = SPECS[real.engines.pipeline].loop
    assert loop is not None
    load = EngineLoad(plan, real.engines, manifests, loop)
    return await Memory(used_and_total, on_cpu=False).fit(load)


@pytest.mark.parametrize("gpu_gb", [24, 48])
async def test_the_gateway_refuses_krea_on_a_small_card(krea: Outline, gpu_gb: int) -> None:
    with pytest.raises(ServingError, match=rf"needs about \d+.* GB .*, {gpu_gb}.0 GB are free: weights 2\d"):
        await load_of(krea, SIZES[0], gpu_gb)


@pytest.mark.parametrize("size", SIZES)
async def test_the_gateway_loads_krea_on_a_card_of_141_gb(krea: Outline, size: tuple[int, int]) -> None:
    chosen = await load_of(krea, size, 141)

    assert not chosen.make_room
    assert chosen.sessions is not None
    assert chosen.plan.total(chosen.sessions) <= 141 * GB < chosen.plan.total(chosen.sessions + 1)


async def test_an_averaged_sink_in_float32_counts_twice_beside_a_16_bit_cache() -> None:
    size = (320, 576)
    real = outline(Request("reward-forcing", Path("nowhere"), (size,), precision="fp16"))

    loads = [await load_of(real, size, 80, sink_ema_float32=wide) for wide in (False, True)]

    plans = [load.plan for load in loads]
    sink = 30 * 2 * 3 * 720 * 1536 * 2  # layers, keys and values, three frames of 720 tokens, 16 bits
    assert [plan.session["averaged sink"] for plan in plans] == [sink, 2 * sink]
    assert plans[1].total() - plans[0].total() == 2 * sink  # while a chunk is made there are two


def test_without_padding_keys_the_cache_holds_frames_only() -> None:
    request = Request("krea-realtime-video", Path("nowhere"), SIZES[:1], padding_keys=False)

    bare = outline(request)

    assert bare.manifests[bare.engines.transformer].cache_tokens == 3 * 1024
    assert (bare.engines.padding_keys, bare.engines.name) == (0, "krea-realtime-video_fp32_wan_unpadded")


def test_an_outline_says_what_an_export_makes(tmp_path: Path) -> None:
    request = small_request(tmp_path / "models")
    exported = {e.graph.label: e.graph for part in components(request) for e in plan(part)}

    described = outline(request)

    labels = [name.removesuffix("_fp32") for name in described.manifests]
    assert labels == list(exported)
    for label, manifest in zip(labels, described.manifests.values(), strict=True):
        assert (manifest.kind, manifest.profiles) == (exported[label].kind, exported[label].profiles)


@pytest.mark.parametrize(
    ("vae_type", "gpu_gb", "sessions", "in_turns"),
    [("wan", 24.3, 0, None), ("tae", 24.3, 7, True), ("wan", 83, 10, False), ("wan", 0, None, None)],
)
def test_a_dry_run_tells_how_many_streams_a_gpu_takes(
    vae_type: str, gpu_gb: float, sessions: int | None, in_turns: bool | None, tmp_path: Path
) -> None:
    arguments = ["longlive", "--dry-run", "--size=320x576", "--precision=bf16", f"--vae-type={vae_type}"]
    result = CliRunner().invoke(main, [*arguments, f"--gpu-memory={gpu_gb}", "--home", str(tmp_path)])

    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    (memory,) = printed["memory"]
    assert printed["gpu_memory_bytes"] == (round(gpu_gb * GB) or None)
    assert (memory["sessions"], memory["text_encoder_in_turns"]) == (sessions, in_turns)


@pytest.mark.parametrize(
    ("gpu_gb", "expected"),
    [
        (24.3, r"needs about \d.* GB of GPU memory for one session, 24.3 GB are free: .*--gpu-memory GB"),
        (83, "Download them first|download_models"),
        (0, "Download them first|download_models"),
    ],
)
def test_an_export_is_refused_before_it_reads_anything_if_the_gpu_has_no_room(
    gpu_gb: float, expected: str, tmp_path: Path
) -> None:
    arguments = ["longlive", "--size=320x576", "--precision=bf16", f"--gpu-memory={gpu_gb}"]
    result = CliRunner().invoke(main, [*arguments, "--home", str(tmp_path)])

    assert result.exit_code == 1
    assert re.search(expected, result.stderr), result.stderr


def test_the_command_prints_engines_builds_and_memory_without_files(tmp_path: Path) -> None:
    sizes = [f"--size={height}x{width}" for height, width in SIZES]
    arguments = ["krea-realtime-video", "--dry-run", *sizes, "--precision", "fp16"]

    result = CliRunner().invoke(main, [*arguments, "--home", str(tmp_path)])

    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    transformer = next(b for b in printed["builds"] if b["engine"] == "krea-realtime-video_transformer_fp16")
    kv = next(i for i in printed["engines"][1]["inputs"] if i["name"] == "kv_00")
    frames = [TOKENS[height] for height, _ in SIZES]
    assert [p["tokens"]["max"] for p in transformer["profiles"]] == [[1, 4 * S, 64] for S in frames]
    assert [prod(p["kv_00"]["max"]) for p in transformer["profiles"]] == [
        2 * (3 * S + 16) * 5120 for S in frames
    ]
    assert kv["shape"] == [2, 1, "S", 40, 128]
    assert [(m["height"], m["width"]) for m in printed["memory"]] == list(SIZES)
    assert list(tmp_path.iterdir()) == []
