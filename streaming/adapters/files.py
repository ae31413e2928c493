"""LoRA files looked at, before any weight is read: layers, ranks, and what is wrong (lora.md 2, 3 and 7)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from safetensors import SafetensorError, safe_open

from streaming.adapters.keys import ModuleNames, Role, is_of_text_encoder, parse
from streaming.checkpoints.shapes import Shape
from streaming.errors import WanstreamError

Problem = Literal[
    "file_not_found",
    "path_not_allowed",
    "unreadable",
    "no_match",
    "shape_mismatch",
    "bad_alpha",
    "non_finite",
    "duplicate",
    "rank_budget",
    "merge_only",
]

# What is left out of a file, each with a count.
TEXT_ENCODER: Final = "for a text encoder"
NOT_AN_ADAPTER: Final = "not of a LoRA"
NO_LAYER: Final = "for layers that this model does not have"
NOT_LINEAR: Final = "for layers that are not linear"
HALF: Final = "without the other half of their pair"
MAGNITUDES: Final = "magnitudes of DoRA, whose plain low-rank part is applied"
PRODUCTS: Final = "LoHa or LoKr, which cannot be applied"
AGAIN: Final = "for a layer that another tensor of the file changes already"


class AdapterError(WanstreamError):
    """A LoRA file cannot be used. The message names the file and the class of the problem."""

    def __init__(self, path: Path, problem: Problem, text: str) -> None:
        super().__init__(f"LoRA '{path.name}' ({problem}): {text}")
        self.problem = problem


@dataclass(slots=True)
class LayerTensors:
    """Names in the file of the tensors that change one layer."""

    down: str | None = None
    up: str | None = None
    alpha: str | None = None
    diff: str | None = None
    diff_b: str | None = None
    dora: str | None = None
    product: str | None = None
    rank: int = 0  # of the pair, 0 without one

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of those that are applied."""
        names = (self.down, self.up, self.alpha, self.diff, self.diff_b)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A LoRA file that fits a model.

    layers: what changes each layer, by the layer's name. skipped: how many tensors are left out, by reason.
    metadata: what the training program wrote.
    """

    path: Path
    layers: Mapping[str, LayerTensors]
    skipped: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of its pairs."""
        return max(layer.rank for layer in self.layers.values())

    @property
    def low_rank_only(self) -> bool:
        """Whether it is nothing but low-rank pairs, as a branch beside the layers can apply."""
        return all(layer.diff is None and layer.diff_b is None for layer in self.layers.values())

    @property
    def warnings(self) -> list[str]:
        """A sentence for each kind of tensors that are left out."""
        return [
            f"LoRA '{self.path.name}': {count} tensors were ignored: {reason}."
            for reason, count in self.skipped.items()
        ]


def look_into(path: Path, shapes: Mapping[str, Shape]) -> AdapterFile:
    """What a LoRA file changes in a model, from its header alone.

    shapes: of the model's parameters, by key, such as `blocks.0.self_attn.q.weight`: [out, in]
    Raises AdapterError: file_not_found, unreadable, no_match, shape_mismatch, bad_alpha.
    """
    tensors, metadata = _header(path)
    layers, skipped = _by_layer(tensors, shapes)
    for module in list(layers):
        if not _complete(layers[module], skipped):
            del layers[module]
    if not layers:
        raise AdapterError(path, "no_match", _nothing(skipped))
    for module, layer in layers.items():
        _check(path, module, layer, tensors, shapes)
    return AdapterFile(path, layers, dict(skipped), metadata)


def _header(path: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    try:
        with safe_open(path, framework="np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            return shapes, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise AdapterError(path, "file_not_found", "there is no such file.") from error
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            path, "unreadable", f"it is damaged, or no safetensors file ({error}). Download it again."
        ) from error


def _by_layer(
    tensors: Mapping[str, Shape], shapes: Mapping[str, Shape]
) -> tuple[dict[str, LayerTensors], Counter[str]]:
    """The tensors of each linear layer of the model, and how many are left out."""
    weights = {key.removesuffix(".weight"): shape for key, shape in shapes.items() if key.endswith(".weight")}
    names = ModuleNames(weights)
    layers: dict[str, LayerTensors] = {}
    skipped: Counter[str] = Counter()
    for name in tensors:
        key = parse(name)
        module = None if key is None else names.find(key.module)
        known = module is not None and (key is None or key.role != Role.DIFF_B or f"{module}.bias" in shapes)
        if key is None or module is None or not known or len(weights[module]) != 2:
            skipped[_reason(name, key is not None, known)] += 1
            continue
        layer = layers.setdefault(module, LayerTensors())
        if getattr(layer, key.role.value) is None:
            setattr(layer, key.role.value, name)
        else:
            skipped[AGAIN] += 1
    return layers, skipped


def _reason(name: str, is_adapter: bool, has_module: bool) -> str:
    if is_of_text_encoder(name):
        return TEXT_ENCODER
    if has_module:
        return NOT_LINEAR
    return NO_LAYER if is_adapter else NOT_AN_ADAPTER


def _complete(layer: LayerTensors, skipped: Counter[str]) -> bool:
    """Leave out what cannot be applied; whether something is left."""
    if layer.product is not None:
        skipped[PRODUCTS] += 1
        layer.product = layer.alpha = None
    if (layer.down is None) != (layer.up is None):
        skipped[HALF] += 1
        layer.down = layer.up = layer.alpha = None
    if layer.dora is not None:
        skipped[MAGNITUDES] += 1
        # The differences of such a file are to a weight that the magnitudes have scaled.
        skipped[MAGNITUDES] += sum(name is not None for name in (layer.diff, layer.diff_b))
        layer.dora = layer.diff = layer.diff_b = None
    return not (layer.down is None and layer.diff is None and layer.diff_b is None)


def _nothing(skipped: Mapping[str, int]) -> str:
    found = "; ".join(f"{count} tensors are {reason}" for reason, count in skipped.items())
    return f"nothing in it is for this model ({found}). Choose a LoRA for the model of this pipeline."


def _check(
    path: Path,
    module: str,
    layer: LayerTensors,
    tensors: Mapping[str, Shape],
    shapes: Mapping[str, Shape],
) -> None:
    """Raises AdapterError when a tensor does not fit its layer; writes the layer's rank."""
    out, width = shapes[f"{module}.weight"]
    if layer.alpha is not None and tensors[layer.alpha] not in ((), (1,)):
        shape = list(tensors[layer.alpha])
        raise AdapterError(path, "bad_alpha", f"alpha of '{module}' is {shape}, not one number.")
    for name, expected in _expected(layer, tensors, out, width):
        if tensors[name] != expected:
            raise AdapterError(
                path,
                "shape_mismatch",
                f"'{name}' is {list(tensors[name])}, not {list(expected)}: layer '{module}' of this model is "
                f"[{out}, {width}]. Is it for a model of another size?",
            )


def _expected(
    layer: LayerTensors, tensors: Mapping[str, Shape], out: int, width: int
) -> Iterator[tuple[str, Shape]]:
    if layer.down is not None and layer.up is not None:
        layer.rank = (tensors[layer.down] or (0,))[0]
        yield layer.down, (layer.rank, width)
        yield layer.up, (out, layer.rank)
    if layer.diff is not None:
        yield layer.diff, (out, width)
    if layer.diff_b is not None:
        yield layer.diff_b, (out,)
