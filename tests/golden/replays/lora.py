"""Replays of adapters: files of every format merged into a transformer, and files that must be refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


def assert_flows(case: GoldenCase, name: str, weights: Checkpoint, place: Place) -> None:
    """Run the case's calls with these weights, and compare those outputs that were recorded as `name`."""
    config, transformer, text_kv = load(case, place, weights)
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
    "lora.malformed": replay_malformed,
}
