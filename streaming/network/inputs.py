"""What the transformer's graph takes and gives, its inputs in named groups (serving.md 8.2). Torch-free.

The one definition: the module that is exported, ONNX files, manifests, TensorRT profiles, the memory plan,
the loop's calls and calibration follow it. What is new is a group here, an argument of the module's
`forward`, and a field of `Conditions` that its value comes from (docs/adding-a-pipeline.md).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from streaming.network.transformer import TransformerCall

Axis = int | str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. An axis given as a string is dynamic; axes of one name have one size.

    group       argument of the module's `forward` that it is a part of; None: it is one itself
    per_layer   there is one for every layer, its number at the end of the name
    """

    name: str
    shape: tuple[Axis, ...]
    integer: bool = False  # int64 instead of the graph's floating type
    float32: bool = False  # float32 whatever the graph's floating type is
    waves: bool = False  # values are sines and cosines
    group: str | None = None
    per_layer: bool = False


@dataclass(frozen=True, slots=True)
class InputGroup:
    """Inputs that belong together: one argument of the transformer's `forward`, a tuple of tensors.

    tensors   axes by name: B batch, F latent frames, T tokens of the chunk, S cached tokens, N heads, D head
              size, R rank of all adapters together; what the network does not fix is dynamic
    values    the tensors of a call, in this order; None: that one is left out of this call
    layers    axis that counts the tensors which there are of every layer
    """

    name: str
    tensors: tuple[TensorSpec, ...]
    values: Callable[["TransformerCall"], Sequence["Tensor | None"]]
    layers: Literal["L", "K"] = "L"

    def specs(self, sizes: Mapping[str, Axis]) -> tuple[TensorSpec, ...]:
        """Of a network of these sizes, among them L, or K for a group of the VACE branch."""
        counted = {**sizes, "L": sizes[self.layers]}
        return tuple(replace(spec, group=self.name) for spec in sized(self.tensors, counted))

    def names(self, layers: int) -> list[str]:
        """In the order of the tensors."""
        return [name for spec in self.tensors for name in _names(spec, layers)]


KEY_BIAS: Final = "key_bias"
ADAPTERS: Final = "adapters"

# By name, in the order of the graph's inputs. A graph need not have them all; a call makes those that it has.
GROUPS: Final[dict[str, InputGroup]] = {
    group.name: group
    for group in (
        InputGroup(
            "tokens",
            (
                TensorSpec("tokens", ("B", "T", "patch_in")),  # noisy latents as patches
                TensorSpec("time_sin", ("B", "F", "freq_dim"), float32=True, waves=True),
                TensorSpec(KEY_BIAS, ("B", 1, 1, "S+T")),
            ),
            lambda call: (call.tokens, call.time_sin, call.key_bias),
        ),
        InputGroup(
            "rope",  # of the new tokens
            (
                TensorSpec("rope_cos", ("T", "D/2"), float32=True, waves=True),
                TensorSpec("rope_sin", ("T", "D/2"), float32=True, waves=True),
            ),
            lambda call: call.rope(call.positions),
        ),
        InputGroup(
            "rope_k",  # of [cached | new] tokens, where keys are cached un-roped
            (
                TensorSpec("rope_k_cos", ("S+T", "D/2"), float32=True, waves=True),
                TensorSpec("rope_k_sin", ("S+T", "D/2"), float32=True, waves=True),
            ),
            lambda call: call.rope([*call.cached_positions, *call.positions]),
        ),
        InputGroup(
            "cross",
            (TensorSpec("cross_kv", (2, "B", "text_len", "N", "D"), per_layer=True),),
            lambda call: call.conditions.cross_kv,
        ),
        InputGroup(
            "cache",
            (TensorSpec("kv", (2, "B", "S", "N", "D"), per_layer=True),),
            lambda call: call.kv,
        ),
        InputGroup(
            "vace",  # of the branch's graph only, see `VaceContext`
            (
                TensorSpec("vace_context", ("B", "T", "vace_in")),
                TensorSpec("vace_valid", ("F",), float32=True),  # 0: the frame has no context
                TensorSpec("vace_scale", (1,), float32=True),
                TensorSpec("vace_padding", (1,), float32=True),  # logarithm of the zero keys' number
                TensorSpec("vace_rope_cos", ("T", "D/2"), float32=True, waves=True),  # from frame 0 on
                TensorSpec("vace_rope_sin", ("T", "D/2"), float32=True, waves=True),
                TensorSpec("vace_cross_kv", (2, "B", "text_len", "N", "D"), per_layer=True),
            ),
            lambda call: call.vace,
            layers="K",
        ),
        InputGroup(
            ADAPTERS,  # low-rank branches beside the linear layers, see `streaming/adapters/stack.py`
            (
                TensorSpec("adapter_down", ("adapted_in", "R")),
                TensorSpec("adapter_up", ("R", "adapted_out")),
                TensorSpec("adapter_scale", ("R",), float32=True),
            ),
            lambda call: call.adapters,
        ),
    )
}

FLOW: Final = "flow"
NEW_KV: Final = "new_kv"
OUTPUTS: Final = (
    TensorSpec(FLOW, ("B", "T", "patch_out")),
    TensorSpec(NEW_KV, (2, "B", "T", "N", "D"), per_layer=True),
)

# Of an autoencoder's graph: what an earlier call gave, group "cache" there, and what the next one is to get.
VAE_CACHE: Final = "cache"
NEW_VAE_CACHE: Final = "new_cache"


def sized(tensors: Iterable[TensorSpec], sizes: Mapping[str, Axis]) -> tuple[TensorSpec, ...]:
    """Tensors of a network of these sizes, among them L; the axes that have none stay dynamic."""
    layers = sizes["L"]
    assert isinstance(layers, int), "a network has a number of layers"

    def shape(spec: TensorSpec) -> tuple[Axis, ...]:
        return tuple(sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape)

    return tuple(
        replace(spec, name=name, shape=shape(spec), per_layer=False)
        for spec in tensors
        for name in _names(spec, layers)
    )


def numbered(stem: str, count: int) -> list[str]:
    """`kv_00`, `kv_01`, ... for the stem "kv"."""
    return [f"{stem}_{i:02d}" for i in range(count)]


def stem_of(name: str) -> str:
    """Without the number of a layer or slot: "kv" for `kv_07`."""
    return re.sub(r"_\d+$", "", name)


def group_of(name: str) -> str | None:
    """The group of an input; None: it is an argument by itself, or nothing here makes such an input."""
    stem = stem_of(name)
    if stem == VAE_CACHE:
        return "cache"
    return next((g.name for g in GROUPS.values() for spec in g.tensors if spec.name == stem), None)


def _names(spec: TensorSpec, layers: int) -> list[str]:
    return numbered(spec.name, layers) if spec.per_layer else [spec.name]
