"""The log file: set-up, redaction, the newest file and its tail (api.md 3.5, 12.4)."""

import logging
import logging.handlers
import re
import time
from dataclasses import dataclass
from pathlib import Path

_MAX_BYTES = 5 << 20
_BACKUPS = 5
_KEEP_S = 24 * 3600
_APPLICATION = ("gateway", "streaming", "triton")
_FRAMEWORK = ("hypercorn.access", "hypercorn.error", "quart.app", "aiortc", "aioice")
_SECRET = re.compile(
    r"(?P<key>(?:hf_token|token|access_token|api_key|credential|authorization)[\"']?\s*[=:]\s*[\"']?(?:bearer\s+)?)"
    r"(?P<value>[^\s\"'&,;}]+)|(?P<bare>\bhf_[A-Za-z0-9]{8,})",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without tokens: `token=...`, `HF_TOKEN: ...`, bearer headers and Hugging Face tokens."""
    return _SECRET.sub(lambda m: f"{m['key']}***" if m["key"] else "***", text)


class RedactingFormatter(logging.Formatter):
    """Scope's line format; tokens never reach the file, whoever logged them."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s - %(name)s - %(levelname)s - %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def setup_logging(directory: Path, *, verbose: bool) -> Path:
    """Log to the console and to a new file in `directory`; files older than a day are removed.

    Returns the file's path.
    """
    directory.mkdir(parents=True, exist_ok=True)
    oldest = time.time() - _KEEP_S
    for path in directory.glob("scope-logs-*.log*"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
    target = directory / time.strftime("scope-logs-%Y-%m-%d-%H-%M-%S.log")
    file = logging.handlers.RotatingFileHandler(
        target, maxBytes=_MAX_BYTES, backupCount=_BACKUPS, encoding="utf-8"
    )
    root = logging.getLogger()
    for handler in (logging.StreamHandler(), file):
        handler.setFormatter(RedactingFormatter())
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _APPLICATION:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in _FRAMEWORK:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)
    return target


@dataclass(frozen=True, slots=True)
class LogTail:
    lines: list[str]
    offset: int  # bytes; pass it as `since_offset` to get only what is newer


class Logs:
    """Reads the server's own log files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def newest(self) -> Path | None:
        """The newest log file: the last name in order, since names carry the start time."""
        return max(self._directory.glob("scope-logs-*.log"), key=lambda path: path.name, default=None)

    def read(self) -> tuple[str, str] | None:
        """(file name, whole text) of the newest log, or None."""
        path = self.newest()
        return None if path is None else (path.name, path.read_bytes().decode("utf-8", "replace"))

    def tail(self, lines: int, since_offset: int) -> LogTail:
        """At most `lines` non-blank lines, of all the file or of what came after `since_offset` bytes."""
        path = self.newest()
        if path is None:
            return LogTail([], 0)
        size = path.stat().st_size
        if since_offset >= size > 0:
            return LogTail([], size)
        with path.open("rb") as file:
            file.seek(since_offset)
            text = file.read(size - since_offset).decode("utf-8", "replace")
        return LogTail([line for line in text.splitlines() if line.strip()][-lines:], size)
