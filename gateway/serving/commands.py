"""Commands of this package that need PyTorch, and run as processes of their own: exports and builds."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

# Without their arguments.
EXPORT: Final = (sys.executable, "-u", "-m", "export")
BUILD: Final = (sys.executable, "-u", "-m", "export.tensorrt.cli")
_LONGEST_LINE = 8 << 10  # bytes


def has_tensorrt() -> bool:
    """Whether its builder is in this Python environment."""
    return importlib.util.find_spec("tensorrt") is not None


async def run_command(command: Sequence[str], cwd: Path, on_line: Callable[[str], None]) -> int:
    """Run it to its end; returns its exit code. on_line: gets what it says, line by line, without empty ones.

    When this is cancelled, it and all processes that it has started are killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=cwd,
        start_new_session=True,  # it has worker processes; all of them end together
    )
    assert process.stdout is not None
    try:
        async for line in _lines(process.stdout):
            if line:
                on_line(line)
        return await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """What comes, line by line; of a very long line, which a reader would refuse, only its beginning."""
    line = b""
    while piece := await stream.read(_LONGEST_LINE):
        *whole, rest = piece.split(b"\n")
        for end in whole:
            yield (line + end)[:_LONGEST_LINE].decode(errors="replace").strip()
            line = b""
        line = (line + rest)[:_LONGEST_LINE]
    if line:
        yield line.decode(errors="replace").strip()
