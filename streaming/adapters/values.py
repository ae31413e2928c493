"""Numbers in LoRA files, looked at without PyTorch: whether all of them are numbers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from streaming.adapters.files import AdapterError, AdapterFile

_LENGTH_BYTES: Final = 8
_AT_ONCE: Final = 1 << 22  # numbers
# Type in the file -> type of that width, and the bits that are all ones in what is no finite number.
_EXPONENTS: Final[dict[str, tuple[Any, int]]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}


def require_finite(file: AdapterFile) -> None:
    """Raises AdapterError `non_finite` when a tensor that would be applied has values that are no numbers."""
    names = {name for layer in file.layers.values() for name in layer.tensors}
    try:
        for name, values, mask in _tensors(file.path, names):
            for start in range(0, len(values), _AT_ONCE):
                part = values[start : start + _AT_ONCE]
                if bool(((part & part.dtype.type(mask)) == mask).any()):
                    raise AdapterError(
                        file.path,
                        "non_finite",
                        f"'{name}' has values that are no numbers. Download it again.",
                    )
    except (OSError, ValueError) as error:
        raise AdapterError(
            file.path, "unreadable", f"it cannot be read ({error}). Download it again."
        ) from error


def _tensors(path: Path, names: set[str]) -> Iterator[tuple[str, Any, int]]:
    """Names, bits and the mask of those tensors that can hold anything but numbers."""
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        header = json.loads(opened.read(length))
    data = np.memmap(path, np.uint8, "r", offset=_LENGTH_BYTES + length)
    for name in sorted(names):
        entry = header[name]
        if entry["dtype"] in _EXPONENTS:
            dtype, mask = _EXPONENTS[entry["dtype"]]
            begin, end = entry["data_offsets"]
            yield name, np.frombuffer(data[begin:end], dtype), mask
