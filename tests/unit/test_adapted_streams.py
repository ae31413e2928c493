"""LoRA files beside the weights: each stream turns their scales for itself, and their list may change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.checkpoints.checkpoints import Checkpoint, load_weights, open_checkpoint
from export.checkpoints.lora_merge import ScaledAdapter, joined, merge, user_adapters
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vace import VaceTransformer
from export.pytorch.engine import ModuleEngine
from streaming.adapters.files import AdapterError, look_into
from streaming.adapters.layers import RANKS, adapted_axes, adapted_layers, stacked_rank
from streaming.adapters.stack import RuntimeAdapter, Stacker, stack
from streaming.checkpoints.shapes import parameter_shapes
from streaming.engines.engine import BranchEngines
from streaming.errors import WanstreamError
from streaming.specs import LONGLIVE, SPECS, CachedKeys, PipelineSpec
from streaming.triton.model_pipeline import ModelPipeline
from streaming.triton.sessions import Images, Stream
from tests.tiny_pipeline import CONFIG, branch_of, chunk, modules, tiny_pipeline

Files = dict[str, Path]
PIPELINES = [spec for spec in SPECS.values() if spec.loop is not None]


def write_adapter(path: Path, seed: int, rank: int = 3, strength: float = 0.4, **more: Tensor) -> Path:
    """Changes every linear layer of the tiny transformer."""
    generator, tensors = torch.Generator().manual_seed(seed), dict(more)
    for key, shape in parameter_shapes(CONFIG).items():
        if key.endswith(".weight") and len(shape) == 2:
            name = f"diffusion_model.{key.removesuffix('.weight')}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, shape[1], generator=generator) * strength
            tensors[f"{name}.lora_B.weight"] = torch.randn(shape[0], rank, generator=generator) * strength
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("loras")
    return {name: write_adapter(directory / f"{name}.safetensors", ord(name)) for name in "abc"}


def adapted_pipeline(
    spec: PipelineSpec = LONGLIVE, adapters: list[RuntimeAdapter] | None = None
) -> ModelPipeline:
    """The tiny pipeline with branches beside its layers."""
    assert spec.loop is not None
    plain = tiny_pipeline(spec=spec)
    unroped = spec.loop.cached_keys is CachedKeys.UNROTATED
    transformer, text_kv = Transformer(CONFIG, unroped, adapted=True), TextKV(CONFIG, adapted=True)
    for module, weights in zip((transformer, text_kv), modules("wan", torch.float32, unroped), strict=False):
        module.load_state_dict(weights.state_dict())
    engines = replace(
        plain.model.engines,
        transformer=ModuleEngine(transformer, transformer.signature(0)),
        text_kv=ModuleEngine(text_kv, text_kv.signature()),
        vace=vace_engines(transformer),
    )
    stacker = Stacker(CONFIG, torch.float32, torch.device("cpu"))
    pipeline = ModelPipeline(spec, replace(plain.model, engines=engines), base_seed=42, stacker=stacker)
    pipeline.put_beside(adapters or [])
    return pipeline


def vace_engines(transformer: Transformer) -> BranchEngines:
    """The transformer with a VACE branch, and branches for adapters where it has them itself."""
    branch, text = branch_of(transformer)
    whole = VaceTransformer(CONFIG, branch.vace, transformer.unroped_cache, transformer.adapted)
    whole.load_state_dict(branch.state_dict())
    return BranchEngines(ModuleEngine(whole, whole.signature(0)), ModuleEngine(text, text.signature()))


def beside(files: Files, **scales: float) -> list[RuntimeAdapter]:
    return [RuntimeAdapter(files[name], name, scale) for name, scale in scales.items()]


def turned(**scales: float) -> list[dict[str, Any]]:
    return [{"path": name, "scale": scale} for name, scale in scales.items()]


def pictures(stream: Stream, *chunks: dict[str, Any]) -> list[Images]:
    return [chunk(stream, **values)[0] for values in chunks]


def assert_same(some: list[Images], others: list[Images]) -> None:
    for images, expected in zip(some, others, strict=True):
        np.testing.assert_array_equal(images, expected)


def merged_pipeline(spec: PipelineSpec, adapters: list[ScaledAdapter], tmp_path: Path) -> ModelPipeline:
    """The tiny pipeline with LoRA files merged into its weights."""
    assert spec.loop is not None
    plain = tiny_pipeline(spec=spec)
    unroped = spec.loop.cached_keys is CachedKeys.UNROTATED
    state = {}
    for module in modules("wan", torch.float32, unroped)[:2]:
        for name, value in module.state_dict().items():
            turn = name.endswith("weight_t")
            state[name.removesuffix("_t") if turn else name] = value.t().contiguous() if turn else value
    patch = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = patch.reshape(CONFIG.dim, CONFIG.in_dim, *CONFIG.patch_size)
    save_file(state, tmp_path / "base.safetensors")
    base = open_checkpoint(tmp_path / "base.safetensors")
    checkpoint: Checkpoint = merge(base, joined([user_adapters(base, adapters)[0]]))
    new: tuple[nn.Module, nn.Module] = Transformer(CONFIG, unroped), TextKV(CONFIG)
    load_weights(checkpoint, *new)
    transformer, text_kv = new
    assert isinstance(transformer, Transformer)
    assert isinstance(text_kv, TextKV)
    engines = replace(
        plain.model.engines,
        transformer=ModuleEngine(transformer, transformer.signature(0)),
        text_kv=ModuleEngine(text_kv, text_kv.signature()),
        vace=vace_engines(transformer),
    )
    return ModelPipeline(spec, replace(plain.model, engines=engines), base_seed=42)


@pytest.mark.parametrize("spec", PIPELINES, ids=lambda spec: spec.id)
def test_both_modes_make_the_same_pictures(spec: PipelineSpec, files: Files, tmp_path: Path) -> None:
    """Three adapters at once, of which one counts against the others. To two steps of 255."""
    scales = {"a": 0.8, "b": -0.5, "c": 0.3}
    chunks = [{}, {}, {"prompts": "another"}]
    merged = merged_pipeline(spec, [ScaledAdapter(files[n], s) for n, s in scales.items()], tmp_path)

    by_branches = pictures(adapted_pipeline(spec, beside(files, **scales)).open_stream(), *chunks)
    by_merge = pictures(merged.open_stream(), *chunks)
    plain = pictures(tiny_pipeline(spec=spec).open_stream(), *chunks)

    for one, other, without in zip(by_branches, by_merge, plain, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 2
        assert np.abs(one.astype(int) - without.astype(int)).max() > 30


@pytest.mark.parametrize("spec", PIPELINES, ids=lambda spec: spec.id)
def test_both_modes_make_the_same_pictures_with_vace_at_the_same_time(
    spec: PipelineSpec, files: Files, tmp_path: Path
) -> None:
    image = np.random.default_rng(7).integers(0, 256, (20, 30, 3), np.uint8)
    chunks: list[dict[str, Any]] = [{"vace_ref_images": [image]}, {}]
    merged = merged_pipeline(spec, [ScaledAdapter(files["a"], 0.8)], tmp_path)

    by_branches = pictures(adapted_pipeline(spec, beside(files, a=0.8)).open_stream(), *chunks)
    by_merge = pictures(merged.open_stream(), *chunks)
    without_image = pictures(merged.open_stream(), {}, {})
    without_adapter = pictures(adapted_pipeline(spec, beside(files, a=0.0)).open_stream(), *chunks)

    for one, other in zip(by_branches, by_merge, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 2
    for others in (without_image, without_adapter):
        assert np.abs(by_branches[0].astype(int) - others[0].astype(int)).max() > 30


def test_scale_zero_is_bit_equal_to_no_adapter(files: Files) -> None:
    chunks = [{}, {"prompts": "another"}]

    silent = pictures(adapted_pipeline(adapters=beside(files, a=0.0, b=0.0)).open_stream(), *chunks)
    empty = pictures(adapted_pipeline().open_stream(), *chunks)
    plain = pictures(tiny_pipeline().open_stream(), *chunks)

    assert_same(silent, empty)
    assert_same(silent, plain)


@pytest.fixture
def one(files: Files) -> ModelPipeline:
    return adapted_pipeline(adapters=beside(files, a=1.0, b=0.5))


def test_a_scale_counts_from_the_next_chunk_until_the_next_change(one: ModelPipeline, files: Files) -> None:
    keep = {"manage_cache": False}
    changes = [keep, {**keep, "lora_scales": turned(a=-1.0)}, keep]
    stream, other = one.open_stream(), one.open_stream()

    with_change, without = pictures(stream, *changes), pictures(other, keep, keep, keep)

    np.testing.assert_array_equal(with_change[0], without[0])
    assert (with_change[1] != without[1]).any()
    assert (with_change[2] != without[2]).any()
    assert stream.session.start == 9  # type: ignore[attr-defined]


def test_viewers_with_other_scales_get_what_each_gets_alone(one: ModelPipeline) -> None:
    chunks: list[dict[str, Any]] = [
        {"manage_cache": False},
        {"manage_cache": False, "lora_scales": turned(b=2.0)},
    ]
    others = [{**c, "lora_scales": turned(a=0.1)} for c in chunks]
    alone = [pictures(one.open_stream(), *chunks), pictures(one.open_stream(), *others)]
    streams = one.open_stream(), one.open_stream()

    together = [
        pictures(stream, values)
        for pair in zip(chunks, others, strict=True)
        for stream, values in zip(streams, pair, strict=True)
    ]

    assert_same([images for (images,) in together[0::2]], alone[0])
    assert_same([images for (images,) in together[1::2]], alone[1])
    assert (alone[0][0] != alone[1][0]).any()


@pytest.mark.parametrize(
    ("change", "start"),
    [
        pytest.param({"lora_scales": turned(a=0.2)}, 3, id="a change"),
        pytest.param({"lora_scales": turned(a=0.2), "manage_cache": False}, 6, id="without management"),
        pytest.param({"lora_scales": turned(a=1.0)}, 6, id="what it is already"),
        pytest.param({"lora_scales": turned(a=1.0 + 5e-7)}, 6, id="less than counts"),
        pytest.param({"lora_scales": turned(unknown=0.2)}, 6, id="an unknown name"),
    ],
)
def test_only_a_real_change_resets_a_managed_cache(
    one: ModelPipeline, change: dict[str, Any], start: int
) -> None:
    stream = one.open_stream()
    chunk(stream)

    chunk(stream, **change)

    assert stream.session.start == start  # type: ignore[attr-defined]


def test_small_changes_add_up_until_they_count(one: ModelPipeline) -> None:
    stream = one.open_stream()
    chunk(stream)
    for step in range(1, 4):
        chunk(stream, manage_cache=False, lora_scales=turned(a=1.0 + step * 6e-7))

    conditions = stream.session.conditions  # type: ignore[attr-defined]
    assert conditions.adapters.scales["a"] == pytest.approx(1.0 + 1.2e-6, abs=1e-7)


def test_a_new_list_counts_from_the_next_chunk_and_streams_go_on(one: ModelPipeline, files: Files) -> None:
    stream, other = one.open_stream(), one.open_stream()
    for each in (stream, other):
        chunk(each, lora_scales=turned(a=0.4))

    one.put_beside(beside(files, c=0.7, a=1.0))
    added, _ = chunk(stream)
    one.put_beside(beside(files, a=1.0, b=0.5))
    back, _ = chunk(other)
    one.put_beside([])
    without, _ = chunk(other)

    assert stream.session.start == 6  # type: ignore[attr-defined]
    assert stream.session.conditions.adapters.scales == {"c": 0.7, "a": 0.4}  # type: ignore[attr-defined]
    assert (added != back).any()
    assert (back != without).any()
    assert other.session.conditions.adapters.scales == {}  # type: ignore[attr-defined]


def test_a_list_that_cannot_be_leaves_the_one_that_is(
    one: ModelPipeline, files: Files, tmp_path: Path
) -> None:
    wide = write_adapter(tmp_path / "wide.safetensors", 1, rank=254)
    stream = one.open_stream()
    chunk(stream)

    with pytest.raises(
        AdapterError, match=r"'wide.safetensors' \(rank_budget\): .* add up to 257, .* room for 256"
    ):
        one.put_beside([*beside(files, a=1.0), RuntimeAdapter(wide, "wide", 1.0)])
    chunk(stream)

    assert stream.session.conditions.adapters.scales == {"a": 1.0, "b": 0.5}  # type: ignore[attr-defined]


def test_what_takes_no_adapters_says_how_to_load_it() -> None:
    with pytest.raises(WanstreamError, match="load it with lora_merge_mode runtime_peft"):
        tiny_pipeline().put_beside([])


def test_whole_differences_cannot_be_turned(tmp_path: Path) -> None:
    diff = {"diffusion_model.head.head.diff": torch.zeros(64, CONFIG.dim)}
    path = write_adapter(tmp_path / "diff.safetensors", 1, **diff)

    with pytest.raises(AdapterError, match=r"\(merge_only\): .* merge_mode permanent_merge"):
        stack([RuntimeAdapter(path, "diff", 1.0)], CONFIG)


@pytest.mark.parametrize(
    ("rank", "stacked"), [(1, 32), (32, 32), (33, 64), (65, 128), (129, 256), (256, 256)]
)
def test_the_smallest_rank_that_fits_is_taken(rank: int, stacked: int, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "lora.safetensors", 1, rank=rank)

    assert stacked_rank([look_into(path, parameter_shapes(CONFIG))]) == stacked
    assert stacked_rank([]) == RANKS[0]


def test_the_two_graphs_share_out_all_linear_layers() -> None:
    linear = [
        k.removesuffix(".weight")
        for k, s in parameter_shapes(CONFIG).items()
        if len(s) == 2 and "weight" in k
    ]
    layers = {n: adapted_layers(CONFIG, n) for n in ("transformer", "text_kv")}  # type: ignore[arg-type]

    assert sorted(layer.name for found in layers.values() for layer in found) == sorted(linear)
    for network, found in layers.items():
        axes = adapted_axes(CONFIG, network)  # type: ignore[arg-type]
        assert axes["adapted_in"] == sum(layer.rows for layer in found)
        assert axes["adapted_out"] == sum(layer.columns for layer in found)
