"""MemFlow's memory bank: single latent frames, kept because they fit the prompt (pipeline-memflow.md 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """One remembered latent frame of one layer; never changed.

    kv         [2, 1, tokens_per_frame, N, D], keys as they lie in the cache, and values
    mean_key   [N, D], float32
    """

    kv: Tensor
    mean_key: Tensor

    @staticmethod
    def of(kv: Tensor) -> "Block":
        return Block(kv, kv[0, 0].float().mean(dim=0))


@dataclass(frozen=True, eq=False, slots=True)
class MemoryBank:
    """The blocks that every call attends to, and the frame that was recorded last. All values are replaced.

    size       blocks that there may be
    interval   chunks between two records; None: nothing is ever recorded, which is what Scope does
    blocks     per layer, the same number in each; the layers choose independently
    pending    per layer; empty: nothing was recorded yet
    records    since the last reset
    """

    size: int = 0
    interval: int | None = None
    blocks: tuple[tuple[Block, ...], ...] = ()
    pending: tuple[Block, ...] = ()
    records: int = 0

    def forgetting(self) -> "MemoryBank":
        """The bank of a stream that starts again."""
        return MemoryBank(self.size, self.interval)

    def keys_and_values(self) -> tuple[tuple[Tensor, ...], ...]:
        """The blocks as the cache shows them."""
        return tuple(tuple(block.kv for block in layer) for layer in self.blocks)

    def after_chunk(self, index: int, new_kv: Sequence[Tensor], tokens_per_frame: int) -> "MemoryBank":
        """Record the first latent frame of every `interval`-th chunk.

        index    of the chunk since the last reset
        new_kv   per layer [2, 1, tokens, N, D], from its clean pass
        """
        if not self.size or self.interval is None or index % self.interval:
            return self
        pending = tuple(Block.of(layer[:, :, :tokens_per_frame].clone()) for layer in new_kv)
        return replace(self, pending=pending, records=self.records + 1)

    def flushed(self, text_keys: Sequence[Tensor] | None) -> "MemoryBank":
        """Bring the pending frame in. It happens before every chunk, not once per record: between two records
        a frame is inserted again and competes with its own copy, as in the reference.

        text_keys   per layer the prompt's cross-attention keys [text_len, N, D]; None: there are none yet
        """
        if not self.records:
            return self
        if self.records <= self.size:
            earlier = self.blocks or ((),) * len(self.pending)
            blocks = tuple(
                (*layer[: self.records - 1], new) for layer, new in zip(earlier, self.pending, strict=True)
            )
        else:
            texts = [None] * len(self.pending) if text_keys is None else [mean_of(k) for k in text_keys]
            layers = zip(self.blocks, self.pending, texts, strict=True)
            blocks = tuple(compress(layer, new, text) for layer, new, text in layers)
        return replace(self, blocks=blocks)


def compress(blocks: Sequence[Block], new: Block, text: Tensor | None) -> tuple[Block, ...]:
    """Make room for `new`: all blocks but the one that fits the prompt least, best first; then the new one.

    text   mean of the prompt's keys [N, D], float32; None counts as zero. On a tie the first blocks stay.
    """
    order = list(range(len(blocks)))
    if text is not None:
        scores = fits(text, [block.mean_key for block in blocks])
        order.sort(key=lambda j: -scores[j])
    return (*(blocks[j] for j in order[: len(blocks) - 1]), new)


def fits(text: Tensor, mean_keys: Sequence[Tensor]) -> list[float]:
    """How well each block fits: mean over heads of <mean text key, mean block key> / sqrt(D).

    The reference averages <text key, block key> over all pairs of tokens, which is the same.
    """
    products = (torch.stack(list(mean_keys)) * text).sum(-1)  # [blocks, N]
    scores: list[float] = (products.mean(-1) / text.shape[-1] ** 0.5).tolist()
    return scores


def mean_of(keys: Tensor) -> Tensor:
    """[tokens, N, D] -> [N, D], float32."""
    return keys.float().mean(dim=0)
