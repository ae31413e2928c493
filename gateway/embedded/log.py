"""Triton's log: from the pipe of its process into our `logging`, line by line."""

import asyncio
import codecs
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("triton")

_LINE = re.compile(
    r"(?P<severity>[IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ (?P<place>[\w.]+:\d+)\] (?P<text>.*)", re.S
)
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_TABLE = ("+--", "| ")
# Looks like trouble on every machine without GPU, where it means nothing.
_HARMLESS = ("CudaDriverHelper has not been initialized", "failed to allocate pinned system memory")
# Three lines for each of a pipeline's engines; the gateway's own log says what is loaded and unloaded.
_ROUTINE = (
    "loading: ",
    "successfully loaded ",
    "successfully unloaded ",
    "TRITONBACKEND_ModelInstanceInitialize: ",
    "Pinned memory pool disabled",
    "CUDA memory pool disabled",
    "Started GRPCInferenceService",
    "Started HTTPService",
)
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class LogLine:
    """level: of `logging`. text: without Triton's prefix and quotes."""

    level: int
    text: str


def parse(line: str) -> LogLine:
    """Severity and text of one line of Triton's output.

    Lines without Triton's prefix were printed by a model (INFO) or are part of Triton's tables (DEBUG). What
    is said at every start and load, or looks like trouble on every machine without GPU, is DEBUG too.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        return LogLine(logging.DEBUG if line.startswith(_TABLE) else logging.INFO, line)
    text = match["text"]
    if text.startswith('"') and text.endswith('"'):
        try:
            text = str(json.loads(text))
        except ValueError:
            text = text[1:-1]
    level = logging.DEBUG if text.startswith(_HARMLESS + _ROUTINE) else _LEVELS[match["severity"]]
    return LogLine(level, text.strip())


async def forward(pipe: int, on_line: Callable[[str], None]) -> None:
    """Log what arrives on `pipe`, a file descriptor that becomes ours, until its last writer is gone."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    try:
        while data := await reader.read(_LONGEST_LINE):
            *lines, rest = (rest + decoder.decode(data)).split("\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], ""
            for line in filter(None, lines):
                _log(line, on_line)
        if rest:
            _log(rest, on_line)
    finally:
        transport.close()


def _log(line: str, on_line: Callable[[str], None]) -> None:
    on_line(line)
    parsed = parse(line)
    if parsed.text:
        logger.log(parsed.level, "%s", parsed.text)
