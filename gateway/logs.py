"""The log: set-up, session ids, redaction, the newest file and its tail (api.md 3.5, 12.4)."""

import contextlib
import json
import logging
import logging.handlers
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from gateway.config import Logging
from streaming.errors import WanstreamError

_MAX_BYTES = 5 << 20
_BACKUPS = 5
_KEEP_S = 24 * 3600
_APPLICATION = ("gateway", "streaming", "triton")
_FRAMEWORK = ("hypercorn.access", "hypercorn.error", "quart.app", "aiortc", "aioice")
_SECRET = re.compile(
    r"(?P<key>(?:hf_token|token|access_token|api_key|credential|authorization)[\"']?\s*[=:]\s*[\"']?(?:bearer\s+)?)"
    r"(?P<value>[^\s\"'&,;}]+)|(?P<bare>\b(?-i:hf_)[A-Za-z0-9]{8,})",
    re.IGNORECASE,
)

_SESSION_URL = re.compile(r"(/wh[ie]p/[^/\s\"]+/[\w-]{6})[\w-]+")


def redact(text: str) -> str:
    """`text` without tokens: `token=...`, `HF_TOKEN: ...`, bearer headers and Hugging Face tokens.

    Of a WHIP or WHEP session's URL, which opens it, the first letters of the secret are left.
    """
    text = _SESSION_URL.sub(r"\1***", text)
    return _SECRET.sub(lambda m: f"{m['key']}***" if m["key"] else "***", text)


# The session that the running task works for; its id goes into lines that do not name one.
current_session: ContextVar[str | None] = ContextVar("current_session", default=None)
_NAMED_SESSION = re.compile(r"\[([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\] ")


def _session_of(message: str) -> str | None:
    """The id that a line about a session begins with, or else that of the running task."""
    named = _NAMED_SESSION.match(message)
    return named[1] if named else current_session.get()


class TextFormatter(logging.Formatter):
    """Scope's line format; tokens never reach the file, whoever logged them."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s - %(name)s - %(levelname)s - %(prefix)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        prefix = f"[{session}] " if (session := _session_of(message)) else ""
        record.prefix = "" if message.startswith(prefix) else prefix
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, session and, where there is one, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        session = _session_of(message)
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(message.removeprefix(f"[{session}] ")),
            "session": session,
        }
        if record.exc_info:
            line["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def setup_logging(directory: Path, settings: Logging) -> Path:
    """Log to the console and to a new file in `directory`; files older than a day are removed.

    Returns the file's path. Raises WanstreamError when the file cannot be written.
    """
    target = directory / time.strftime("scope-logs-%Y-%m-%d-%H-%M-%S.log")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_old(directory)
        file = logging.handlers.RotatingFileHandler(
            target, maxBytes=_MAX_BYTES, backupCount=_BACKUPS, encoding="utf-8"
        )
    except OSError as error:
        raise WanstreamError(
            f"Cannot write the log file {target} ({error.strerror}). Make the directory writable, or choose "
            "another one with DAYDREAM_SCOPE_LOGS_DIR."
        ) from error
    root = logging.getLogger()
    for handler in (logging.StreamHandler(), file):
        handler.setFormatter(JsonFormatter() if settings.json_lines else TextFormatter())
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _APPLICATION:
        logging.getLogger(name).setLevel(settings.level)
    for name in _FRAMEWORK:
        logging.getLogger(name).setLevel(logging.INFO if settings.verbose else logging.WARNING)
    for name in settings.quiet:
        logging.getLogger(name).setLevel(logging.ERROR)
    return target


def _remove_old(directory: Path) -> None:
    oldest = time.time() - _KEEP_S
    for path in directory.glob("scope-logs-*.log*"):
        with contextlib.suppress(OSError):  # another server removed it, or it belongs to another user
            if path.stat().st_mtime < oldest:
                path.unlink()


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
