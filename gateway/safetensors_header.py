"""The header of a safetensors file, read and checked without its weights.

Format: 8 bytes little-endian length N, N bytes of JSON, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from streaming.errors import WanstreamError

_MAX_HEADER_BYTES: Final = 100_000_000  # the reference implementation's limit
_BITS: Final = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class SafetensorsError(WanstreamError):
    """A file that is no complete safetensors file, and why."""


def problem_of(path: Path) -> str | None:
    """Why `path` cannot be used as a safetensors file; None: its header is right and it is complete."""
    try:
        status = path.stat()
        return _problem(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


@lru_cache(maxsize=1024)
def _problem(path: Path, _modified_ns: int, size_bytes: int) -> str | None:
    try:
        check(path, size_bytes)
    except SafetensorsError as error:
        return str(error)
    return None


def check(path: Path, size_bytes: int) -> None:
    """Check a file of that size. Raises SafetensorsError and OSError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or length > min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise SafetensorsError("it is not a safetensors file, or it is truncated")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SafetensorsError("it is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise SafetensorsError("it is not a safetensors file: its header is not an object")
    spans = sorted(_span(name, tensor) for name, tensor in header.items() if name != "__metadata__")
    if not spans:
        raise SafetensorsError("it holds no tensors")
    end = 0
    for begin, stop in spans:
        if begin != end:
            raise SafetensorsError("its tensors overlap or leave gaps")
        end = stop
    if end != size_bytes - 8 - length:
        raise SafetensorsError(f"it should have {8 + length + end} bytes but has {size_bytes}: truncated?")


def _span(name: str, tensor: Any) -> tuple[int, int]:
    """First byte and end of a tensor's data."""
    try:
        dtype, shape, (begin, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (begin, end, *shape))
        if sound and (end - begin) * 8 == math.prod(shape) * _BITS[dtype]:
            return begin, end
    except (TypeError, KeyError, ValueError):
        pass
    raise SafetensorsError(f"the entry of tensor '{name[:80]}' makes no sense")
