"""Sizes of a Wan2.1 transformer, as config.json beside its weights says them. Torch-free."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from streaming.errors import WanstreamError
from streaming.network.inputs import Axis

Patch = tuple[int, int, int]  # latent frames (always 1), rows, columns of one token

PATCH: Patch = (1, 2, 2)  # of every Wan2.1 model


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Sizes of a Wan2.1 text-to-video transformer. Defaults are what config.json of the weights omits."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    in_dim: int = 16
    out_dim: int = 16
    patch_size: Patch = PATCH
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def axes(self, batch: int = 1) -> dict[str, Axis]:
        """Sizes of the axes that the network fixes, by the names of `streaming/network/inputs.py`."""
        patch = prod(self.patch_size)
        return {
            "B": batch,
            "L": self.num_layers,
            "N": self.num_heads,
            "D": self.head_dim,
            "D/2": self.head_dim // 2,
            "text_len": self.text_len,
            "freq_dim": self.freq_dim,
            "patch_in": self.in_dim * patch,
            "patch_out": self.out_dim * patch,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "TransformerConfig":
        """Read the config.json beside the weights; keys that are not ours are ignored (wan.md 2.1).

        Raises WanstreamError if a size is missing, or the file asks for a network that this one is not.
        """
        for key, supported in SUPPORTED.items():
            if values.get(key, supported) != supported:
                raise WanstreamError(
                    f"config.json has {key} = {values[key]!r}; only {supported!r} works. "
                    "Use a Wan2.1 text-to-video model."
                )
        fields = dataclasses.fields(TransformerConfig)
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise WanstreamError(f"config.json lacks {', '.join(missing)}. Download it again.")
        known = {f.name: values[f.name] for f in fields if f.name in values}
        if isinstance(known.get("patch_size"), list):
            known["patch_size"] = tuple(known["patch_size"])
        config = TransformerConfig(**known)
        problem = config._problem()
        if problem is not None:
            raise WanstreamError(f"config.json is wrong: {problem}. Download it again.")
        return config

    def _problem(self) -> str | None:
        """Why no network can have these sizes."""
        for name in (f.name for f in dataclasses.fields(self) if f.type == "int" or f.type is int):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                return f"{name} must be a positive integer, not {size!r}"
        if self.dim % (2 * self.num_heads):
            return f"dim {self.dim} does not split into {self.num_heads} heads of even size"
        if self.freq_dim % 2:
            return f"freq_dim must be even, not {self.freq_dim}"
        if not (isinstance(self.patch_size, tuple) and len(self.patch_size) == 3 and self.patch_size[0] == 1):
            return f"patch_size must be [1, rows, columns], not {self.patch_size!r}"
        return None


# What our network does and other members of the family do not.
SUPPORTED = {"model_type": "t2v", "qk_norm": True, "cross_attn_norm": True}

WAN_1_3B = TransformerConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
WAN_14B = TransformerConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
