"""Replays of adapters: files of every format merged into a transformer, and files that must be refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from export.checkpoints.checkpoints import Checkpoint, open_checkpoint
from export.checkpoints.lora_merge import (
    Changes,
    ScaledAdapter,
    builtin_adapter,
    joined,
    merge,
    user_adapters,
)
from streaming.adapters.files import AdapterError
from streaming.adapters.layers import adapted_layers
from streaming.adapters.stack import AdapterStack, RuntimeAdapter, ScaledStack, stack
from streaming.checkpoints.config import TransformerConfig
from tests.golden.case import GoldenCase
from tests.golden.place import Place, in_torch
from tests.golden.replays.transformer import ReferenceCache, load
from tests.transformer_inputs import empty_caches, pad_prompt

ABSENT = " (intentionally absent)"


def adapter_path(case: GoldenCase, name: str) -> Path:
    return case.path.parent / "files" / f"{name}.safetensors"


def merged(base: Checkpoint, *adapters: ScaledAdapter, below: Changes | None = None) -> Checkpoint:
    """The weights with LoRA files merged, on top of what belongs `below` them."""
    return merge(base, joined([below or {}, user_adapters(base, adapters)[0]]))


def assert_weights(case: GoldenCase, prefix: str, weights: Checkpoint) -> None:
    keys = [name.removeprefix(prefix) for name in case.expected() if name.startswith(prefix)]
    assert keys
    for key, tensor in weights.tensors(keys):
        case.assert_close(f"{prefix}{key}", tensor)


def assert_flows(
    case: GoldenCase, name: str, weights: Checkpoint, place: Place, adapters: ScaledStack | None = None
) -> None:
    """Run the case's calls with these weights, and compare those outputs that were recorded as `name`."""
    config, transformer, text_kv = load(case, place, weights, adapters)
    sizes = case.config
    cross_kv = text_kv(pad_prompt(case.tensors["in.context"], config.text_len))
    cache = ReferenceCache(
        empty_caches(config, sizes["kv_cache_tokens"], cross_kv[0]),
        sink=sizes["sink_size"] * sizes["frame_seq_length"],
        window=sizes["max_attention_size"],
        evicts=True,
    )
    for k, step in enumerate(case.steps):
        latents = case.tensors[f"step{k}.in.latents"]
        first = step["current_start"] // sizes["frame_seq_length"]
        positions = range(first, first + latents.shape[1])
        cache.start_call(step["current_start"], latents.shape[1] * sizes["frame_seq_length"])

        timestep, bias = case.tensors[f"step{k}.in.timestep"], cache.key_bias()
        flow, new_kv = transformer(
            latents, timestep, cross_kv, positions=positions, kv=cache.layers, key_bias=bias
        )
        cache.write(new_kv)

        if f"step{k}.{name}" in case.tensors:
            case.assert_close(f"step{k}.{name}", flow)


def replay_formats(case: GoldenCase, place: Place = in_torch) -> None:
    """One change in files of every format."""
    base = case.checkpoint()
    assert_flows(case, "out.flow_base", base, place)
    for name in case.values["files"]:
        weights = merged(base, ScaledAdapter(adapter_path(case, name), case.config["scale"]))
        assert_weights(case, "out.merged.", weights)
    assert_flows(case, "out.flow", weights, place)


def replay_builtin(case: GoldenCase, place: Place = in_torch) -> None:
    """A pipeline's own adapter alone, and below a user's."""
    base, sizes = case.checkpoint(), case.config
    own = builtin_adapter(open_checkpoint(adapter_path(case, "builtin_adapter")), sizes["adapter"]["alpha"])
    alone = merge(base, own)
    user = ScaledAdapter(adapter_path(case, sizes["user_file"]), sizes["user_scale"])
    both = merged(base, user, below=own)

    assert_weights(case, "out.merged_builtin.", alone)
    assert_weights(case, "out.merged_builtin_user.", both)
    assert_flows(case, "out.flow_builtin", alone, place)
    assert_flows(case, "out.flow_builtin_user", both, place)


def replay_stacking(case: GoldenCase, place: Place = in_torch) -> None:
    """Three adapters side by side, merged and beside the weights, and other scales for the latter."""
    base, sizes = case.checkpoint(), case.config
    names, scales = sizes["files"], sizes["scales"]
    paths = [adapter_path(case, name) for name in names]
    weights = merged(base, *map(ScaledAdapter, paths, scales))
    assert_weights(case, "out.merged.", weights)
    config = TransformerConfig.from_json(sizes)
    files = stack([RuntimeAdapter(*file) for file in zip(paths, names, scales, strict=True)], config)
    assert_stacked(case, files, config)
    first, updated = files.at({}), files.at(dict(zip(names, sizes["updated_scales"], strict=True)))
    assert_filled(case, "out.scale_vector", first.vector)
    assert_filled(case, "out.scale_vector_updated", updated.vector)

    if place is in_torch:  # elsewhere it would be one more graph, and other cases show the same
        assert_flows(case, "out.flow", weights, place)
    assert_flows(case, "out.flow", base, place, first)
    assert_flows(case, "out.flow_updated", base, place, updated)


def assert_stacked(case: GoldenCase, files: AdapterStack, config: TransformerConfig) -> None:
    """The factors of the layers that were recorded: as [R, in] and [out, R]."""
    for network in ("transformer", "text_kv"):
        factors = files.factors[network]
        for name, row, rows, column, columns in adapted_layers(config, network):
            if f"out.stacked_A.{name}" in case.tensors:
                assert_filled(case, f"out.stacked_A.{name}", factors.down[row : row + rows].t())
                assert_filled(case, f"out.stacked_B.{name}", factors.up[:, column : column + columns], axis=1)


def assert_filled(case: GoldenCase, name: str, actual: Tensor, axis: int = 0) -> None:
    """Compare the numbers of R, the first axis, that the case has; the others are zero. axis: of R there."""
    recorded = case.tensors[name].shape[axis]
    case.assert_close(name, actual[:recorded].movedim(0, axis))
    assert not actual[recorded:].any()


def replay_malformed(case: GoldenCase) -> None:
    """Each file is refused with its class, or applied but for a part of it."""
    base = open_checkpoint(case.path.with_name("formats.safetensors"), prefix="weights.")
    for name, expected in case.values["files"].items():
        path = case.directory / expected["file"].removesuffix(ABSENT)
        adapters = [ScaledAdapter(path, case.config["scale"])]
        if expected["required_class"] == "partial":
            changes, warnings = user_adapters(base, adapters)
            assert changes, name
            assert len(warnings) == 1, (name, warnings)
            continue
        with pytest.raises(AdapterError) as caught:
            user_adapters(base, adapters)
        case.assert_equal(name, caught.value.problem, expected["required_class"])


REPLAYS: dict[str, Callable[[GoldenCase], Any]] = {
    "lora.formats": replay_formats,
    "lora.builtin_adapter": replay_builtin,
    "lora.stacking": replay_stacking,
    "lora.malformed": replay_malformed,
}
