"""Replays of the memory bank's pure functions."""

from collections.abc import Callable

import torch
from torch import Tensor

from streaming.cache.memory_bank import Block, compress, mean_of
from tests.golden.case import GoldenCase


def bank_compression(case: GoldenCase) -> None:
    """The blocks that stay, in their order, and the new one behind them."""
    tokens = case.config["tokens_per_frame"]
    for k in range(count(case)):
        given = {name: case.tensors[f"step{k}.in.{name}"] for name in ("bank_k", "bank_v", "new_k", "new_v")}
        bank = torch.stack([given["bank_k"], given["bank_v"]])
        blocks = [Block.of(kv) for kv in bank.split(tokens, dim=2)]
        new = Block.of(torch.stack([given["new_k"], given["new_v"]]))

        kept = compress(blocks, new, mean_of(case.tensors[f"step{k}.in.text_k"][0]))

        result: Tensor = torch.cat([block.kv for block in kept], dim=2)
        case.assert_equal(f"steps[{k}]: blocks", len(kept), case.config["bank_size"])
        case.assert_close(f"step{k}.out.bank_k", result[0])
        case.assert_close(f"step{k}.out.bank_v", result[1])


def sma_routing(case: GoldenCase) -> None:
    """Keys and values of the blocks that each head attends to."""
    tokens = case.config["tokens_per_frame"]
    for k in range(count(case)):
        q, keys, values = (case.tensors[f"step{k}.in.{name}"] for name in ("q", "global_k", "global_v"))

        chosen = route(q, keys, tokens, case.config["top_k"])

        for name, given in (("k", keys), ("v", values)):
            blocks = given.unflatten(1, (-1, tokens)).movedim(3, 1)  # [B, N, blocks, tokens, D]
            index = chosen[..., None, None].expand(-1, -1, -1, *blocks.shape[3:])
            case.assert_close(f"step{k}.out.{name}", blocks.gather(2, index).flatten(2, 3).movedim(1, 2))


def route(q: Tensor, k: Tensor, tokens_per_frame: int, count: int) -> Tensor:
    """Sparse memory attention (pipeline-memflow.md 6): the blocks that fit a chunk's queries, for each head.

    q         [B, T, N, D], of the chunk's tokens
    k         [B, blocks * tokens_per_frame, N, D], of sink and bank
    returns   int64 [B, N, min(count, blocks)], numbers of the best blocks, ascending

    Off in every published configuration and in our graphs: it would need a key bias by head.
    """
    B, _, N, D = k.shape
    blocks = k.reshape(B, -1, tokens_per_frame, N, D).float().mean(dim=2)  # [B, blocks, N, D]
    scores = torch.einsum("bnd,bgnd->bng", q.float().mean(dim=1), blocks)
    return scores.topk(min(count, blocks.shape[1]), dim=-1).indices.sort(dim=-1).values


def count(case: GoldenCase) -> int:
    """Calls of a case."""
    return len({name.partition(".")[0] for name in case.tensors})


REPLAYS: dict[str, Callable[[GoldenCase], None]] = {
    "memflow.bank_compression": bank_compression,
    "memflow.sma_routing": sma_routing,
}
