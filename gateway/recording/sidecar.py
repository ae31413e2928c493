"""The lines beside a take's video: what was asked of the stream, chunk by chunk (streams.md 5.6).

One JSON object a line. The first one is the head; the others have `t`, seconds of the file's clock, and
`chunk`, and either `set` with values that took effect in that chunk, or `event`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

FORMAT: Final = 1
_TAIL_BYTES: Final = 64 << 10

Line = dict[str, Any]


def append(file: BinaryIO, line: Mapping[str, Any]) -> None:
    """Write a line and hand it to the system, so that it outlives this process."""
    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    file.flush()


def lines(path: Path) -> Iterator[Line]:
    """All lines, the head first; what a crash cut off is left out. Raises OSError."""
    with path.open("rb") as file:
        for raw in file:
            line = _parsed(raw)
            if line is not None:
                yield line


def head(path: Path) -> Line:
    """The first line; empty where there is none. Raises OSError."""
    with path.open("rb") as file:
        return _parsed(file.readline()) or {}


def last_event(path: Path, event: str) -> Line | None:
    """The last line with this event, if it is near the end. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        parsed = [line for raw in file for line in [_parsed(raw)] if line is not None]
    return next((line for line in reversed(parsed) if line.get("event") == event), None)


def heal(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to a sidecar whose writer was killed, perhaps in the middle of a line."""
    with path.open("ab+") as file:
        file.seek(0, 2)
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        append(file, line)


def _parsed(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
