"""The VACE branch: a second stack of blocks whose hints steer the transformer (vace.md 6).

`VaceTransformer` is the transformer with the branch in it, `VaceTextKV` what the branch wants of a prompt.
Their main part has the names, and the weights, of `Transformer` and `TextKV`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from export.graphs.layers import Linear
from export.graphs.signature import Signature, Values
from export.graphs.transformer import Block, TextBlock, Transformer
from streaming.checkpoints.config import TransformerConfig
from streaming.network.inputs import GROUPS, TensorSpec, sized

PATCH_EMBEDDING = "vace_patch_embedding"
BLOCKS = "vace_blocks"


@dataclass(frozen=True, slots=True)
class VaceConfig:
    """Sizes of a branch.

    layers   main blocks that get a hint, ascending; one block of the branch makes each
    in_dim   channels of the context
    """

    layers: tuple[int, ...]
    in_dim: int = 96

    @staticmethod
    def from_shapes(shapes: Mapping[str, tuple[int, ...]], num_layers: int) -> "VaceConfig":
        """Of a checkpoint, whose blocks are spread evenly over the transformer's `num_layers`.

        Raises KeyError, naming the tensor that is missing.
        """
        in_dim = shapes[f"{PATCH_EMBEDDING}.weight"][1]
        numbers = {int(key.split(".")[1]) for key in shapes if key.startswith(f"{BLOCKS}.")}
        if not numbers:
            raise KeyError(f"{BLOCKS}.0")
        count = max(numbers) + 1
        return VaceConfig(tuple(range(0, num_layers, max(1, num_layers // count)))[:count], in_dim)


class VaceBlock(Block):
    """A block of the transformer, and how it is tied to it.

    The reference pads queries, keys and values of its self attention with zero rows to a multiple of 128. P
    such keys are one of score log P: the one token that the block finds in its cache.
    """

    def __init__(self, config: TransformerConfig, first: bool) -> None:
        super().__init__(config, unroped_cache=False)
        self.before_proj = Linear(config.dim, config.dim) if first else None
        self.after_proj = Linear(config.dim, config.dim)


class VaceTransformer(Transformer):
    """The transformer with a branch: hints are added to the tokens after some of its blocks.

    Called without context it is the plain transformer.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vace: VaceConfig,
        unroped_cache: bool = False,
        adapted: bool = False,
    ) -> None:
        super().__init__(config, unroped_cache, adapted)
        self.vace = vace
        patch = (vace.in_dim, *config.patch_size)
        self.vace_patch_embedding = Linear(prod(patch), config.dim, checkpoint_shape=(config.dim, *patch))
        self.vace_blocks = nn.ModuleList(VaceBlock(config, first=n == 0) for n in range(len(vace.layers)))

    @property
    def groups(self) -> set[str]:
        return super().groups | {"vace"}

    def hints(self, x: Tensor, e0: Tensor, vace: Values | None) -> dict[int, Tensor]:
        """By main block, what is added after it: [B, T, dim] each.

        x      [B, T, dim], the tokens before the first block
        e0     [B, F, 6, dim]
        vace   group "vace" of `streaming/network/inputs.py`; None: no context
        """
        if vace is None:
            return {}
        scale = vace[2].to(x.dtype)
        hints = self.unscaled_hints(x, e0, vace)
        return {layer: scale * hint for layer, hint in zip(self.vace.layers, hints, strict=True)}

    def unscaled_hints(self, x: Tensor, e0: Tensor, vace: Values) -> list[Tensor]:
        """In the order of the branch's blocks."""
        context, valid, _, padding, cos, sin, *cross = vace
        frames = self.vace_patch_embedding(context).unflatten(1, (e0.shape[1], -1))
        c = (frames * valid.to(x.dtype)[:, None, None]).reshape(x.shape)
        zeros = x[:, :1] * 0  # not new ones: an operator less
        no_keys = torch.stack([zeros, zeros]).unflatten(3, (self.config.num_heads, self.config.head_dim))
        bias = torch.cat([zeros[:, 0, :1] + padding.to(x.dtype), x[:, :, 0] * 0], dim=1)
        hints: list[Tensor] = []
        blocks: Any = self.vace_blocks
        for block, cross_kv in zip(blocks, cross, strict=True):
            if block.before_proj is not None:
                c = block.before_proj(c) + x
            c, _ = block(c, e0, cross_kv, no_keys, bias[:, None, None], (cos, sin), None)
            hints.append(block.after_proj(c))
        return hints

    def axes(self, batch: int) -> dict[str, int | str]:
        patch = prod(self.config.patch_size)
        return super().axes(batch) | {"K": len(self.vace.layers), "vace_in": self.vace.in_dim * patch}


class VaceTextKV(nn.Module):
    """Keys and values of every VACE block's cross attention, from the prompt's embedding; beside `TextKV`."""

    def __init__(self, config: TransformerConfig, vace: VaceConfig) -> None:
        super().__init__()
        self.config, self.vace = config, vace
        self.text_embedding = nn.Sequential(
            Linear(config.text_dim, config.dim), nn.GELU(approximate="tanh"), Linear(config.dim, config.dim)
        )
        self.vace_blocks = nn.ModuleList(TextBlock(config) for _ in vace.layers)

    def forward(self, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        """[B, text_len, text_dim], rows after the prompt being zero -> per block [2, B, text_len, N, D]"""
        context = self.text_embedding(prompt_embeds)
        return tuple(block(context) for block in self.vace_blocks)

    def signature(self, batch: int = 1) -> Signature:
        """Names and shapes; nothing is dynamic."""
        config = self.config
        cross = [spec for spec in GROUPS["vace"].tensors if spec.per_layer]
        return Signature(
            inputs=(TensorSpec("prompt_embeds", (batch, config.text_len, config.text_dim)),),
            outputs=sized(cross, config.axes(batch) | {"L": len(self.vace.layers)}),
        )
