"""The boxes of a fragmented MP4 file: where the last complete fragment ends (ISO/IEC 14496-12)."""

import os
from pathlib import Path

_HEADER_BYTES = 8
_LARGE_HEADER_BYTES = 16


def trim(path: Path) -> None:
    """Cut off a fragment that was not written to its end: decoders complain about it. Raises OSError."""
    with path.open("r+b") as file:
        length = os.fstat(file.fileno()).st_size
        end = position = 0
        while position + _HEADER_BYTES <= length:
            file.seek(position)
            header = file.read(_LARGE_HEADER_BYTES)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:
                size = int.from_bytes(header[8:], "big")
            position += size
            if size < _HEADER_BYTES or position > length:
                break
            if kind != b"moof":  # is nothing without the data after it
                end = position
        if end < length:
            file.truncate(end)
