"""Locks on files that are in use, so that another server on the same directory leaves them alone."""

import contextlib
from collections.abc import Iterator
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, where nobody can rename or remove an open file
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def lock(file: IO[Any]) -> Iterator[bool]:
    """Whether this process may write the file now, until the end of the block."""
    if fcntl is None:
        yield True
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
