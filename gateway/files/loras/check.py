"""Whether a LoRA file can be read: the judgement of the safetensors library, on the header alone."""

import threading
from functools import lru_cache
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from gateway.http.validation import quoted
from streaming.checkpoints.stand_ins import stand_in

# The library allows 100 MB, from which it makes 1.6 GB of objects at worst, and holds Python's lock for five
# seconds meanwhile; 10 MB cost at most 170 MB and 0.7 s. Real headers are far below 1 MB, with a training's
# notes sometimes a few.
_MAX_HEADER_BYTES: Final = 10_000_000
_LENGTH_BYTES: Final = 8
_one_at_a_time = threading.Lock()


def problem_of(path: Path) -> str | None:
    """Why a file cannot be used as a LoRA; None: its header is right and its tensors are complete."""
    try:
        status = path.stat()
        return _problem(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


@lru_cache(maxsize=1024)
def _problem(path: Path, _modified_ns: int, size_bytes: int) -> str | None:
    what = stand_in(path)
    if what is not None:
        return f"it is {what}"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size_bytes < _LENGTH_BYTES or length > size_bytes - _LENGTH_BYTES:
        return "it is not a safetensors file, or it is truncated: download it again"
    if length > _MAX_HEADER_BYTES:
        return (
            f"its header has {length / 1e6:.0f} MB; more than {_MAX_HEADER_BYTES / 1e6:.0f} MB are not read"
        )
    with _one_at_a_time:
        return _library_s_problem(path)


def _library_s_problem(path: Path) -> str | None:
    try:
        with safe_open(path, framework="np") as file:
            return None if file.keys() else "it holds no tensors"
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        return f"the safetensors library refuses it ({quoted(reason, 200)}): download or save it again"
