"""Checkpoint files to modules: one reader for every layout of wan.md 7, one loader that checks every key.

A module is built on the meta device, so that it costs no memory, and then filled tensor by tensor:

    with torch.device("meta"):
        transformer, text_kv = Transformer(config), TextKV(config)
    load_weights(open_checkpoint(path), transformer, text_kv, dtype=torch.bfloat16)

The files are memory-mapped and the mapping is renewed as loading goes on, because pages that were read count
as memory of the process: loading needs the weights themselves plus a small part of the file, not both.
"""

import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from export.graphs.layers import Linear
from streaming.checkpoints.files import CheckpointError, require_file

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]

ZIP_MAGIC = b"PK\x03\x04"  # .pt files since torch 1.6; only these can be memory-mapped
MAPPED_BYTES = 128 * 2**20  # read from one mapping before it is renewed
NAMED_KEYS = 8  # so many keys stand in an error message, of which there may be a thousand
DAMAGED = "The file is damaged or incomplete: delete it and download it again."


class Entry(NamedTuple):
    """One tensor of a file."""

    name_in_file: str
    shape: Shape
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file whose tensors are read on demand. Keys are those of wan.md 2.8, 5.2, 5.9 and 6.6."""

    path: Path
    entries: Mapping[str, Entry]
    _read: Callable[[Sequence[str]], Iterator[Tensor]] = field(repr=False)

    def tensors(self, keys: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Keys and tensors, in the type of the file. A tensor may be a view of the mapped file: copy it."""
        for group in self._groups(keys):
            yield from zip(group, self._read([self.entries[key].name_in_file for key in group]), strict=True)

    def _groups(self, keys: Sequence[str]) -> Iterator[list[str]]:
        group: list[str] = []
        size = 0
        for key in keys:
            if group and size + self.entries[key].bytes > MAPPED_BYTES:
                yield group
                group, size = [], 0
            group.append(key)
            size += self.entries[key].bytes
        if group:
            yield group


def open_checkpoint(path: Path, entry: str | tuple[str, ...] | None = None, prefix: str = "") -> Checkpoint:
    """Read the names and shapes of a .safetensors, .pt or .pth file.

    entry   state dict to take where a .pt file holds several, such as "generator", or several names, of which
            the first one that is there counts; a file that holds its tensors directly needs none
    prefix  take only the keys that start with it, and remove it

    Then, if all keys start with `model.`, that is removed, and `_fsdp_wrapped_module.` anywhere (wan.md 7.2).
    Raises CheckpointError if the file is absent, damaged, or has another layout.
    """
    require_file(path)
    if path.suffix == ".safetensors":
        entries, read = _safetensors_entries(path), _safetensors_reader(path)
    elif path.suffix in (".pt", ".pth"):
        names = (entry,) if isinstance(entry, str) else entry or ()
        state = _torch_state(path, names)
        entries = [Entry(key, tuple(t.shape), t.nbytes) for key, t in state.items()]
        read = _torch_reader(path, names)
    else:
        raise CheckpointError(f"Checkpoint '{path}' must be a .safetensors, .pt or .pth file.")
    return Checkpoint(path, _by_model_key(path, entries, prefix), read)


def checkpoint_shapes(*modules: nn.Module) -> dict[str, Shape]:
    """The keys and shapes that a checkpoint of these modules has; works on the meta device."""
    return {slot.key: slot.shape for module in modules for slot in _slots(module)}


def load_weights(
    checkpoint: Checkpoint,
    *modules: nn.Module,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    unexpected: Literal["error", "warn"] = "error",
) -> None:
    """Fill modules, which may be on the meta device, from the checkpoint that is theirs together.

    dtype       type of the parameters; those of a module with `float32_parameters` are float32 always.
                float8 tensors are plain values without scale (wan.md 7.3)
    device      where the parameters go, one by one
    unexpected  what a key that belongs to no module is; "warn" for files that are known to have such keys

    Parameters come out frozen and contiguous, and modules in eval mode. Raises CheckpointError that names
    missing, unexpected and mis-shaped keys; then no module was changed.
    """
    slots: dict[str, list[_Slot]] = {}
    for module in modules:
        for slot in _slots(module):
            slots.setdefault(slot.key, []).append(slot)
    _check_keys(checkpoint, slots, unexpected)
    for key, tensor in checkpoint.tensors(list(slots)):
        for slot in slots[key]:
            slot.fill(tensor, dtype, device)
    for module in modules:
        module.eval()


class _Slot(NamedTuple):
    """A parameter of a module and the checkpoint's name and shape for it."""

    key: str
    shape: Shape
    module: nn.Module
    name: str

    def fill(self, tensor: Tensor, dtype: torch.dtype, device: torch.device | str) -> None:
        if isinstance(self.module, Linear) and self.name == "weight_t":
            tensor = tensor.flatten(1).t()
        if getattr(self.module, "float32_parameters", False):
            dtype = torch.float32
        value = torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)
        self.module.register_parameter(self.name, nn.Parameter(value, requires_grad=False))


def _slots(module: nn.Module) -> Iterator[_Slot]:
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            prefix = f"{path}." if path else ""
            if isinstance(owner, Linear) and name == "weight_t":
                yield _Slot(f"{prefix}weight", owner.checkpoint_shape, owner, name)
            else:
                yield _Slot(f"{prefix}{name}", tuple(parameter.shape), owner, name)


def _check_keys(
    checkpoint: Checkpoint, slots: Mapping[str, Sequence[_Slot]], unexpected: Literal["error", "warn"]
) -> None:
    entries = checkpoint.entries
    missing = [key for key in slots if key not in entries]
    extra = [key for key in entries if key not in slots]
    shapes = [
        f"{key} is {list(entries[key].shape)}, not {list(slot.shape)}"
        for key, owners in slots.items()
        for slot in owners
        if key in entries and entries[key].shape != slot.shape
    ]
    if extra and unexpected == "warn":
        logger.warning("%s: ignored keys that the model does not have: %s", checkpoint.path, _some(extra))
        extra = []
    problems = {"missing": missing, "unexpected": extra, "wrong shape": shapes}
    if any(problems.values()):
        found = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise CheckpointError(
            f"Checkpoint '{checkpoint.path}' does not fit the model. {found}. "
            "Check that the file and the config.json are those of this pipeline."
        )


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:NAMED_KEYS])
    return shown if len(keys) <= NAMED_KEYS else f"{shown} and {len(keys) - NAMED_KEYS} more"


def _by_model_key(path: Path, entries: Sequence[Entry], prefix: str) -> dict[str, Entry]:
    keys = [entry.name_in_file for entry in entries]
    if prefix:
        entries = [entry for entry in entries if entry.name_in_file.startswith(prefix)]
        keys = [entry.name_in_file.removeprefix(prefix) for entry in entries]
    if keys and all(key.startswith("model.") for key in keys):
        keys = [key.removeprefix("model.") for key in keys]
    keys = [key.replace("_fsdp_wrapped_module.", "") for key in keys]
    if len(set(keys)) < len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise CheckpointError(f"Checkpoint '{path}' has two tensors for {_some(twice)}. Download it again.")
    if not keys:
        raise CheckpointError(f"Checkpoint '{path}' holds no tensors with prefix '{prefix}'.")
    return dict(zip(keys, entries, strict=True))


def _safetensors_entries(path: Path) -> list[Entry]:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"Checkpoint '{path}' cannot be read ({error}). {DAMAGED}") from error
    share = path.stat().st_size / max(1, sum(map(_elements, shapes.values())))  # mean bytes per element
    return [Entry(key, shape, int(_elements(shape) * share)) for key, shape in shapes.items()]


def _safetensors_reader(path: Path) -> Callable[[Sequence[str]], Iterator[Tensor]]:
    def read(names: Sequence[str]) -> Iterator[Tensor]:
        with safe_open(path, framework="pt") as file:
            for name in names:
                yield file.get_tensor(name)

    return read


def _torch_reader(path: Path, names: Sequence[str]) -> Callable[[Sequence[str]], Iterator[Tensor]]:
    def read(keys: Sequence[str]) -> Iterator[Tensor]:
        state = _torch_state(path, names)
        for key in keys:
            yield state[key]

    return read


def _torch_state(path: Path, names: Sequence[str]) -> Mapping[str, Tensor]:
    """The state dict of a .pt file, its tensors mapped (old files without zip container are read)."""
    with path.open("rb") as file:
        mappable = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    try:
        loaded = torch.load(path, map_location="cpu", mmap=mappable, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise CheckpointError(f"Checkpoint '{path}' cannot be read ({reason}). {DAMAGED}") from error
    nested: dict[Any, Any] = loaded if isinstance(loaded, dict) else {}
    if _is_state_dict(nested):
        return nested
    entries = [key for key, value in nested.items() if _is_state_dict(value)]
    found = next((name for name in names if name in entries), None)
    if found is None:
        listed = " or ".join(f"'{name}'" for name in names)
        wanted = f"no state dict {listed}" if names else "no tensors at its top level"
        raise CheckpointError(
            f"Checkpoint '{path}' has {wanted}; it holds {_some(entries) or 'no state dict at all'}."
            " Check that it is the file of this pipeline."
        )
    state: Mapping[str, Tensor] = nested[found]
    return state


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _elements(shape: Shape) -> int:
    return int(torch.Size(shape).numel())
