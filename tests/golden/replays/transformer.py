"""Replays of the transformer: one pass over all frames, a stream with the cache of wan.md 3.3, key bias."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from export.checkpoints.checkpoints import Checkpoint, load_weights
from export.graphs.transformer import SelfAttention, TextKV, Transformer
from export.pytorch.pipeline import stream_sizes
from streaming.adapters.stack import ScaledStack
from streaming.cache.attention_bias import visible
from streaming.checkpoints.config import TransformerConfig
from streaming.conditioning.conditions import Conditions
from streaming.network.tokens import rope_tables
from streaming.network.transformer import TransformerCall
from streaming.schedule import FlowSchedule
from tests.golden.case import GoldenCase
from tests.golden.place import Place, in_torch
from tests.transformer_inputs import empty_caches, pad_prompt

CrossKV = Callable[[Tensor], Sequence[Tensor]]
Results = tuple[Tensor, list[Tensor]]
Run = Callable[..., Results]


def load(
    case: GoldenCase, place: Place, weights: Checkpoint | None = None, adapters: ScaledStack | None = None
) -> tuple[TransformerConfig, Run, CrossKV]:
    """The two graphs of a case, filled by the loader of real checkpoints; the transformer gives flow and keys
    and values. weights: others than the case's. adapters: beside the weights.
    """
    config, adapted = TransformerConfig.from_json(case.config), adapters is not None
    with torch.device("meta"):
        transformer, text_kv = Transformer(config, adapted=adapted), TextKV(config, adapted)
    ranks = {} if adapters is None else {"R": adapters.stack.rank}
    load_weights(weights or case.checkpoint(), transformer, text_kv)

    def run(latents: Tensor, timestep: Tensor, cross_kv: Sequence[Tensor], **rest: Any) -> Results:
        conditions = Conditions(tuple(cross_kv), adapters=adapters)
        call = TransformerCall(stream_sizes(config), latents, timestep, conditions=conditions, **rest)
        _, B, S, *_ = call.kv[0].shape
        tokens = call.tokens.shape[1] // latents.shape[1]  # of a latent frame
        sizes = {"F": 2, "T": 2 * tokens, "S+T": S + 2 * tokens, **ranks}
        signature = transformer.signature(S, B)
        inputs = call.inputs([spec.name for spec in signature.inputs])
        flow, *new_kv = place(transformer, signature, sizes)(*inputs.values())
        return call.flow(flow), new_kv

    def cross_kv(embedding: Tensor) -> Sequence[Tensor]:
        beside = () if adapters is None else adapters.inputs("text_kv")
        return place(text_kv, text_kv.signature(embedding.shape[0]), ranks)(embedding, *beside)

    return config, run, cross_kv


def replay_bidirectional(case: GoldenCase, place: Place = in_torch) -> None:
    """All frames at once, one timestep per sample. The cache is one hidden slot: Triton has no empty axis."""
    config, transformer, text_kv = load(case, place)
    latents = case.tensors["in.latents"].transpose(1, 2)  # [B, C, F, h, w] -> [B, F, C, h, w]
    B, F = latents.shape[:2]
    timestep = case.tensors["in.timestep"].reshape(B, -1).expand(B, F)
    cross_kv = text_kv(pad_prompt(case.tensors["in.context"], config.text_len))

    new_tokens = F * (latents.shape[3] // config.patch_size[1]) * (latents.shape[4] // config.patch_size[2])
    bias = visible((), 1, new_tokens).expand(B, -1, -1, -1)
    cache = empty_caches(config, 1, latents, B)
    flow, _ = transformer(latents, timestep, cross_kv, positions=range(F), kv=cache, key_bias=bias)

    case.assert_close("out.flow", flow.transpose(1, 2))


@dataclass
class ReferenceCache:
    """The reference's cache layout: rows in order of age, moved on eviction. Lengths in tokens.

    Its rows are the graph's static cache slots, of which `key_bias` shows those that hold older chunks.
    """

    layers: list[Tensor]  # [2, B, capacity, N, D]
    sink: int
    window: int
    evicts: bool
    global_end: int = 0
    local_end: int = 0
    rows: slice = field(default_factory=lambda: slice(0, 0))  # of the chunk that is being generated

    def start_call(self, current_start: int, new: int) -> None:
        """Make room for `new` tokens and advance; a repeated chunk keeps its rows."""
        delta = current_start + new - self.global_end
        capacity = self.layers[0].shape[2]
        evict = 0
        if self.evicts and delta > 0 and self.local_end + new > capacity:
            evict = self.local_end + new - capacity
            for i, kv in enumerate(self.layers):
                kept = [kv[:, :, : self.sink], kv[:, :, self.sink + evict :], kv[:, :, :evict]]
                self.layers[i] = torch.cat(kept, dim=2)
        self.local_end += delta - evict
        self.global_end += delta
        self.rows = slice(self.local_end - new, self.local_end)

    def key_bias(self) -> Tensor:
        """Older rows inside the window, and the chunk itself."""
        older = range(max(0, self.local_end - self.window), self.rows.start)
        return visible(older, self.layers[0].shape[2], self.rows.stop - self.rows.start)

    def write(self, new_kv: list[Tensor]) -> None:
        """Every call leaves its keys and values in the rows of its chunk."""
        for kv, new in zip(self.layers, new_kv, strict=True):
            kv[:, :, self.rows] = new


def replay_causal(case: GoldenCase, place: Place = in_torch) -> None:
    """Every call of a stream, with the static cache and key bias of serving.md 8.2."""
    config, transformer, text_kv = load(case, place)
    sizes = case.config
    schedule = FlowSchedule.shifted(sizes["timestep_shift"])
    cross_kv = text_kv(pad_prompt(case.tensors["in.context"], config.text_len))
    cache = ReferenceCache(
        empty_caches(config, sizes["kv_cache_tokens"], cross_kv[0], batch=cross_kv[0].shape[1]),
        sink=sizes["sink_size"] * sizes["frame_seq_length"],
        window=sizes["max_attention_size"],
        evicts=sizes["local_attn_size"] != -1,
    )
    for k, step in enumerate(case.steps):
        latents, timestep = case.tensors[f"step{k}.in.latents"], case.tensors[f"step{k}.in.timestep"]
        new_tokens = latents.shape[1] * sizes["frame_seq_length"]
        first = step["current_start"] // sizes["frame_seq_length"]
        positions = range(first, first + latents.shape[1])
        cache.start_call(step["current_start"], new_tokens)

        flow, new_kv = transformer(
            latents, timestep, cross_kv, positions=positions, kv=cache.layers, key_bias=cache.key_bias()
        )
        cache.write(new_kv)

        case.assert_close(f"step{k}.out.flow", flow)
        case.assert_close(f"step{k}.out.x0", schedule.to_x0(flow, latents, timestep))
        case.assert_equal(f"steps[{k}].global_end_index", cache.global_end, step["global_end_index"])
        case.assert_equal(f"steps[{k}].local_end_index", cache.local_end, step["local_end_index"])
        assert_states(case, k, cross_kv, cache)
        assert_renoised(case, k, schedule, schedule.to_x0(flow, latents, timestep))


def assert_states(case: GoldenCase, k: int, cross_kv: Sequence[Tensor], cache: ReferenceCache) -> None:
    """Compare those of the recorded states that call k has; a recorded state may be the first rows only."""
    for i, (cross, kv) in enumerate(zip(cross_kv, cache.layers, strict=True)):
        actual = {"cross_k": cross[0], "cross_v": cross[1], "k": kv[0], "v": kv[1]}
        for name, tensor in actual.items():
            recorded = case.tensors.get(f"step{k}.state.blocks.{i}.{name}")
            if recorded is not None:
                case.assert_close(f"step{k}.state.blocks.{i}.{name}", tensor[:, : recorded.shape[1]])


def assert_renoised(case: GoldenCase, k: int, schedule: FlowSchedule, x_0: Tensor) -> None:
    """Where the noise was recorded, x_0 of this call with noise added is the next call's input."""
    noise = case.tensors.get(f"step{k}.in.renoise")
    if noise is not None:
        x_t = schedule.add_noise(x_0, noise, case.tensors[f"step{k + 1}.in.timestep"])
        case.assert_close(f"step{k + 1}.in.latents", x_t)


def replay_attention_bias(case: GoldenCase) -> None:
    """One self attention with down-weighted past keys and keys of score zero, as spare slots with bias 0."""
    sizes = case.config
    config = TransformerConfig(sizes["dim"], 1, sizes["num_heads"], 1, eps=sizes["eps"])
    with torch.device("meta"):
        self_attn = SelfAttention(config, unroped_cache=False)
    load_weights(case.checkpoint("blocks.0.self_attn."), self_attn)
    for k, step in enumerate(case.steps):
        x = case.tensors[f"step{k}.in.x"]
        cached = torch.stack([case.tensors[f"step{k}.in.cache_{name}"] for name in "kv"])
        spare = cached.new_zeros(*cached.shape[:2], step["zero_keys"], *cached.shape[3:])
        frames, rows, columns = step["grid"]
        first = step["current_start"] // step["tokens_per_frame"]
        rope = rope_tables(range(first, first + frames), rows, columns, config.head_dim)
        unbiased = sizes["num_frame_per_block"] * step["tokens_per_frame"]
        past = slice(step["tokens_per_frame"], step["cached_tokens"] + x.shape[1] - unbiased)
        bias = torch.zeros(1, 1, 1, cached.shape[2] + spare.shape[2] + x.shape[1])
        bias[..., past] = math.log(step["kv_cache_attention_bias"])

        y, _ = self_attn(x, torch.cat([cached, spare], dim=2), bias, rope, rope)

        case.assert_close(f"step{k}.out.y", y)


REPLAYS: dict[str, Callable[[GoldenCase], Any]] = {
    "wan.dit": replay_bidirectional,
    "wan.causal": replay_causal,
    "krea.attn_bias_unit": replay_attention_bias,
}
