"""Names in LoRA files: which layer of the transformer a tensor is for, and as what (lora.md 3)."""

import re
from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

# Longest first: `base_model.model.diffusion_model.blocks...` occurs, too.
_PREFIXES: Final = (
    "base_model.model.diffusion_model.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "",
)
_KOHYA: Final = "lora_unet_"
_TEXT_ENCODER: Final = re.compile(r"lora_te\d*_|text_encoder(_\d)?\.|text_encoders\.|lora_prior_te_|te\d?\.")

# Names of diffusers -> of Wan, within a block and outside of the blocks.
_IN_BLOCK: Final = {
    **{f"attn1.to_{name}": f"self_attn.{name}" for name in "qkv"},
    **{f"attn2.to_{name}": f"cross_attn.{name}" for name in "qkv"},
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_OUTSIDE: Final = {
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}
_BLOCK: Final = re.compile(r"((?:vace_)?blocks\.\d+)\.(.+)")

_SUFFIX: Final = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"(?P<down>lora_A(?:\.[^.]+)?\.weight|lora_down\.weight)"
    r"|(?P<up>lora_B(?:\.[^.]+)?\.weight|lora_up\.weight)"
    r"|(?P<alpha>alpha)"
    r"|(?P<diff>diff)"
    r"|(?P<diff_b>diff_b)"
    r"|(?P<dora>dora_scale|lora_magnitude_vector(?:\..+)?)"
    r"|(?P<product>(?:hada|lokr)_.+)"
    r")"
)


class Role(str, Enum):
    """What a tensor is for the layer that it belongs to."""

    DOWN = "down"  # A, [rank, in]
    UP = "up"  # B, [out, rank]
    ALPHA = "alpha"  # scalar; the product counts alpha / rank times
    DIFF = "diff"  # added to the weight, [out, in]
    DIFF_B = "diff_b"  # added to the bias, [out]
    DORA = "dora"  # magnitudes of DoRA
    PRODUCT = "product"  # factors of LoHa or LoKr


class Key(NamedTuple):
    """A tensor's layer, as the file spells it without its prefix, and role."""

    module: str
    role: Role


def is_of_text_encoder(name: str) -> bool:
    """Whether a tensor changes a text encoder, not the transformer."""
    return _TEXT_ENCODER.match(name) is not None


def parse(name: str) -> Key | None:
    """A tensor's name without its suffix, and what the suffix says; None: no part of an adapter."""
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return None
    module = match["module"]
    return next(Key(module, role) for role in Role if match[role.value] is not None)


class ModuleNames:
    """The spellings of the layers of one transformer."""

    def __init__(self, modules: Iterable[str]) -> None:
        """modules: by their own names, such as `blocks.0.self_attn.q`."""
        self._modules = frozenset(modules)
        # Not by a rule: an underscore may be a dot or belong to a name.
        self._kohya = {_KOHYA + module.replace(".", "_"): module for module in self._modules}

    def find(self, spelling: str) -> str | None:
        """The layer that a file calls so; None when the model has none."""
        if spelling in self._kohya:
            return self._kohya[spelling]
        for prefix in _PREFIXES:
            if spelling.startswith(prefix):
                plain = spelling.removeprefix(prefix)
                found = next((name for name in (plain, _wan_name(plain)) if name in self._modules), None)
                if found is not None:
                    return found
        return None


def _wan_name(name: str) -> str:
    """A name of diffusers in the words of Wan; any other as it is."""
    block = _BLOCK.fullmatch(name)
    if block is not None:
        return f"{block[1]}.{_IN_BLOCK.get(block[2], block[2])}"
    return _OUTSIDE.get(name, name)
