"""What backend `pytorch` takes: as the networks say, as was measured, and refused with what would fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from export.checkpoints.load import published_text_encoder, published_vae, transformer_modules
from export.graphs.vae_graphs import DecoderGraph, EncoderGraph
from export.pytorch.pipeline import load_pipeline
from streaming.adapters.stack import no_adapters
from streaming.checkpoints.config import WAN_1_3B, WAN_14B, TransformerConfig
from streaming.engines.load_plan import LoadPlan, TorchPlan, TorchSwitches
from streaming.memory.checkpoints import (
    UMT5_XXL_PARAMETERS,
    VAE_SIZES,
    CheckpointSizes,
    checkpoint_memory,
    checkpoint_weights,
    transformer_parameters,
)
from streaming.memory.fit import Fit, fit_checkpoint
from streaming.memory.plan import DoesNotFitError, MemoryPlan
from streaming.specs import LONGLIVE, SPECS, CachedKeys, OnPromptChange, VaeType
from streaming.triton.model_pipeline import ModelStream
from tests.checkpoints import torch_load_plan, write_small
from tests.engines import SIZE, TRANSFORMER

GB = 1_000_000_000
H200 = Path(__file__).parents[2] / "benchmarks" / "results" / "nvidia-h200-2026-11-26.json"
ON_GPU = TorchPlan(
    checkpoints=Path("models"),
    vae_type="wan",
    precision="bf16",
    device="cuda:0",
    text_device="cuda:0",
    text_precision="bf16",
)
PUBLISHED = CheckpointSizes(WAN_1_3B)
LARGE, SMALL = (480, 832), (320, 576)
assert LONGLIVE.loop is not None


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("checkpoints") / "models")


@pytest.mark.parametrize("config", [WAN_1_3B, WAN_14B, TRANSFORMER])
def test_the_transformer_has_as_many_numbers_as_are_counted(config: TransformerConfig) -> None:
    modules = transformer_modules(config, CachedKeys.ROTATED)

    assert transformer_parameters(config) == tuple(map(parameters, modules))
    for precision, item in (("fp32", 4), ("bf16", 2)):
        plan = ON_GPU.model_copy(update={"precision": precision})
        counted = checkpoint_weights(CheckpointSizes(config), plan, text_encoder=False)
        kept = sum(
            parameters(owner) * (4 - item)
            for owner in modules[0].modules()
            if getattr(owner, "float32_parameters", False)
        )
        assert counted["transformer"] == parameters(modules[0]) * item + kept


@pytest.mark.parametrize("config", [WAN_1_3B, TRANSFORMER])
def test_adapters_take_what_their_factors_are(config: TransformerConfig) -> None:
    assert LONGLIVE.loop is not None
    factors = no_adapters(config, 2, torch.bfloat16, torch.device("cpu")).factors.values()
    cpu = ON_GPU.model_copy(update={"device": "cpu"})

    def buffers(plan: TorchPlan, rank: int) -> int:
        sizes = CheckpointSizes(config, adapter_rank=rank)
        return checkpoint_memory("a", sizes, LONGLIVE.loop, SMALL, plan, text_encoder=True).buffers

    assert buffers(cpu, 2) == sum(f.down.nbytes + f.up.nbytes for f in factors)
    assert buffers(cpu, 0) == 0
    assert buffers(ON_GPU, 2) - buffers(ON_GPU, 0) == 2 * buffers(cpu, 2)  # recorded calls have copies


def test_the_text_encoder_has_as_many_numbers_as_are_counted() -> None:
    assert parameters(published_text_encoder(512)) == UMT5_XXL_PARAMETERS


@pytest.mark.parametrize("vae_type", VAE_SIZES)
def test_an_autoencoder_has_the_numbers_and_the_caches_that_are_counted(vae_type: VaeType) -> None:
    vae, sizes = published_vae(vae_type), VAE_SIZES[vae_type]
    graphs = (EncoderGraph(vae, False), DecoderGraph(vae, False))
    caches = [spec for graph in graphs for spec in graph.signature(*SMALL).inputs if "cache" in spec.name]
    kept = sum(torch.Size([int(axis) for axis in spec.shape]).numel() for spec in caches)

    assert parameters(vae) == sizes.parameters
    assert kept == sizes.cache * SMALL[0] * SMALL[1]


def test_the_caches_of_a_session_are_those_of_a_stream(models: Path) -> None:
    load = torch_load_plan(models, "longlive")
    assert load.pytorch is not None
    assert LONGLIVE.loop is not None
    stream = load_pipeline(LONGLIVE, load).open_stream()
    assert isinstance(stream, ModelStream)
    video = np.zeros((13, *SIZE, 3), np.uint8)
    request = {"prompts": "a", "input_mode": "video", "denoising_step_list": [500]}
    for _ in stream.next_chunk(request, video, lambda: False):
        pass
    sizes = CheckpointSizes.of(models, "longlive", "wan")

    plan = checkpoint_memory("small", sizes, LONGLIVE.loop, SIZE, load.pytorch, text_encoder=True)

    session = stream.session
    assert sizes.transformer == TRANSFORMER
    assert plan.session["KV cache"] == sum(layer.nbytes for layer in session.kv.slots.layers)
    assert plan.session["cross attention"] == sum(layer.nbytes for layer in session.conditions.cross_kv)
    caches = [*(session.encoder_caches or ()), *(session.decoder_caches or ())]
    kept = sum(cache.nbytes for cache in caches)
    assert kept <= plan.session["VAE caches"] <= 3 * kept  # by the file's size, which is not all weights


def measured() -> list[dict[str, Any]]:
    """Peaks on an H200 in which nothing was compiled, so that only what is counted is in them."""
    found: list[dict[str, Any]] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("compiled") is False and "peak_mb" in value and "vae" in value:
                found.append(value)
            value = list(value.values())
        if isinstance(value, list):
            for part in value:
                look(part)

    look(json.loads(H200.read_text()))
    return found


@pytest.mark.parametrize("row", measured(), ids=lambda row: f"{row['pipeline']}-{row['vae']}")
def test_a_plan_is_a_little_above_what_was_measured(row: dict[str, Any]) -> None:
    """Of steady text streams: without encoder, without another prompt, without the text encoder's weights."""
    width, height = map(int, row["picture"].split("x"))
    loop = SPECS[row["pipeline"]].loop
    assert loop is not None
    steady = replace(loop, on_prompt_change=OnPromptChange.KEEP)
    switches = TorchSwitches(cuda_graph=False)
    plan = ON_GPU.model_copy(update={"vae_type": row["vae"], "switches": switches})

    planned = checkpoint_memory("x", PUBLISHED, steady, (height, width), plan, text_encoder=False)

    torch_bytes = planned.total() - planned.overhead
    assert row["peak_mb"] * 1e6 <= torch_bytes <= 1.2 * row["peak_mb"] * 1e6


def fit_in(gpu_gb: float | None, size: tuple[int, int], host_gb: float | None = 64, **changes: Any) -> Fit:
    plan = LoadPlan(
        models=Path("models"),
        height=size[0],
        width=size[1],
        backend="pytorch",
        pytorch=ON_GPU.model_copy(update=changes),
        base_seed=1,
    )
    free = None if gpu_gb is None else int(gpu_gb * GB)
    host = None if host_gb is None else int(host_gb * GB)
    return fit_checkpoint(LONGLIVE, PUBLISHED, plan, ("wan",), free, host)


def test_a_large_card_takes_the_text_encoder_too() -> None:
    fits = fit_in(80, LARGE)

    assert fits.pytorch is not None
    assert (fits.pytorch.text_device, fits.pytorch.text_precision) == ("cuda:0", "bf16")
    assert "text_encoder" in fits.plan.weights
    assert fits.sessions is not None
    assert fits.plan.total(fits.sessions) <= 80 * GB < fits.plan.total(fits.sessions + 1)


def test_a_small_card_leaves_the_text_encoder_to_the_cpu() -> None:
    fits = fit_in(24, SMALL)

    assert fits.pytorch is not None
    assert fits.pytorch.text_device == "cpu"
    assert "text_encoder" not in fits.plan.weights
    assert "The text encoder is on the CPU." in fits.summary
    with pytest.raises(DoesNotFitError, match=r"text encoder .* 8\.0 GB are free"):
        fit_in(24, SMALL, host_gb=8)


def test_what_nobody_can_tell_is_tried() -> None:
    fits = fit_in(None, LARGE)

    assert (fits.sessions, fits.free) == (None, None)


@pytest.mark.parametrize(
    ("gpu_gb", "size", "changes", "said"),
    [
        (24, LARGE, {}, r"480x832 .* 24\.0 GB are free: .* fits here, .*: \d+x\d+, or vae_type lightvae"),
        (30, LARGE, {"precision": "fp32", "vae_type": "tae"}, r"WANSTREAM_PYTORCH_PRECISION=bf16"),
        (8, (832, 480), {}, r"fits here, all else being equal: \d+x\d+"),
        (2, LARGE, {}, r"Nothing of this pipeline fits"),
    ],
)
def test_a_refusal_has_the_numbers_and_the_nearest_that_fits(
    gpu_gb: int, size: tuple[int, int], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DoesNotFitError, match=said) as refusal:
        fit_in(gpu_gb, size, **changes)

    nearest = [
        word for word in str(refusal.value).replace(",", "").replace(".", " ").split() if word[:1].isdigit()
    ]
    sizes = [tuple(map(int, word.split("x"))) for word in nearest if "x" in word]
    for smaller in sizes[1:]:  # the first one is what was asked for
        assert (smaller[0] > smaller[1]) == (size[0] > size[1])  # portrait stays portrait
        assert fit_in(gpu_gb, (smaller[0], smaller[1]), **changes).sessions


def test_a_plan_names_the_memory_that_it_is_about() -> None:
    on_cpu = TorchPlan(checkpoints=Path("models"), vae_type="wan")
    assert LONGLIVE.loop is not None
    plans: list[MemoryPlan] = [
        checkpoint_memory("x", PUBLISHED, LONGLIVE.loop, SMALL, plan, text_encoder=True)
        for plan in (ON_GPU, on_cpu)
    ]

    assert [plan.placement.memory for plan in plans] == ["GPU memory", "memory"]
    assert plans[0].buffers > 0 == plans[1].buffers  # of recorded calls
