"""Log files: names, redaction, the newest one, its tail."""

import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Logging
from gateway.logs import Logs, current_session, redact, setup_logging
from streaming.errors import WanstreamError

SESSION = "0a6cb1f4-5d0c-4c63-9d1c-0f6f3b1b7a11"


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers = list(root.handlers)
    names = ("gateway", "streaming", "triton", "hypercorn.access", "gateway.noisy")
    loggers = [root, *(logging.getLogger(name) for name in names)]
    levels = [logger.level for logger in loggers]
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize(
    "text",
    [
        "GET https://civitai.com/api?token=s3cr3tvalue&x=1",
        "HF_TOKEN=s3cr3tvalue",
        "headers {'Authorization': 'Bearer s3cr3tvalue'}",
        'body {"credential": "s3cr3tvalue"}',
        "api_key: s3cr3tvalue",
    ],
)
def test_secrets_are_removed(text: str) -> None:
    redacted = redact(text)

    assert "s3cr3tvalue" not in redacted
    assert "***" in redacted


def test_a_bare_hugging_face_token_is_removed() -> None:
    assert redact("using hf_abcdefghijklmnop now") == "using *** now"
    assert redact("check HF_ENDPOINT") == "check HF_ENDPOINT"


def test_ordinary_text_stays() -> None:
    text = "Loading LongLive with {'height': 320} took 3 tokens"

    assert redact(text) == text


@pytest.mark.usefixtures("restored_logging")
def test_secrets_do_not_reach_the_file(tmp_path: Path) -> None:
    path = setup_logging(tmp_path, Logging())

    logging.getLogger("gateway.test").info("download with token=%s", "s3cr3tvalue")

    text = path.read_text()
    assert "download with token=***" in text
    assert " - gateway.test - INFO - " in text


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("restored_logging")
def test_json_lines_can_be_filtered_by_session(tmp_path: Path) -> None:
    path = setup_logging(tmp_path, Logging(json_lines=True))

    logging.getLogger("gateway.test").warning("[%s] Chunk failed: %s", SESSION, 'no "x"')
    logging.getLogger("gateway.test").info("Ready")

    about, other = json_lines(path)
    assert abs(datetime.fromisoformat(about.pop("time")).timestamp() - time.time()) < 60
    assert about == {
        "level": "WARNING",
        "logger": "gateway.test",
        "message": 'Chunk failed: no "x"',
        "session": SESSION,
    }
    assert other["session"] is None


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("json_format", [False, True])
def test_secrets_do_not_reach_json_lines_nor_tracebacks(json_format: bool, tmp_path: Path) -> None:
    path = setup_logging(tmp_path, Logging(json_lines=json_format))

    try:
        raise ValueError('{"token": "s3cr3tvalue"}')
    except ValueError:
        logging.getLogger("gateway.test").exception('refused {"api_key": "s3cr3tvalue"}')

    text = path.read_text()
    assert "s3cr3tvalue" not in text
    assert "Traceback" in text
    assert "api_key" in text


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("message", ["The sequence idled out", f"[{SESSION}] The sequence idled out"])
def test_lines_of_a_session_begin_with_its_id_once(message: str, tmp_path: Path) -> None:
    path = setup_logging(tmp_path, Logging())

    token = current_session.set(SESSION)
    logging.getLogger("gateway.test").info("%s", message)
    current_session.reset(token)

    assert path.read_text().endswith(f" - gateway.test - INFO - [{SESSION}] The sequence idled out\n")


@pytest.mark.usefixtures("restored_logging")
def test_levels_follow_the_settings(tmp_path: Path) -> None:
    path = setup_logging(tmp_path, Logging(level="DEBUG", verbose=True, quiet=("gateway.noisy",)))

    for name in ("gateway.test", "gateway.noisy", "hypercorn.access", "other.library"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(level, "x")

    seen = [tuple(line.split(" - ")[1:3]) for line in path.read_text().splitlines()]
    assert seen == [
        *(("gateway.test", level) for level in ("DEBUG", "INFO", "WARNING", "ERROR")),
        ("gateway.noisy", "ERROR"),
        *(("hypercorn.access", level) for level in ("INFO", "WARNING", "ERROR")),
        *(("other.library", level) for level in ("WARNING", "ERROR")),
    ]


@pytest.mark.usefixtures("restored_logging")
def test_a_log_file_is_rotated_at_5_mb_and_five_parts_are_kept(tmp_path: Path) -> None:
    path = setup_logging(tmp_path, Logging())

    for part in range(8):
        path.write_bytes(b"x" * (5 << 20))
        logging.getLogger("gateway.test").info("part %d", part)

    names = sorted(part.name for part in tmp_path.iterdir())
    assert names == [path.name, *(f"{path.name}.{i}" for i in range(1, 6))]
    assert path.read_text().endswith("part 7\n")
    assert path.stat().st_size < 1000


@pytest.mark.usefixtures("restored_logging")
def test_a_log_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")

    with pytest.raises(WanstreamError, match=r"Cannot write the log file .*DAYDREAM_SCOPE_LOGS_DIR"):
        setup_logging(tmp_path / "logs", Logging())


@pytest.mark.usefixtures("restored_logging")
def test_files_older_than_a_day_are_removed(tmp_path: Path) -> None:
    old = tmp_path / "scope-logs-2020-01-01-00-00-00.log"
    rotated = tmp_path / "scope-logs-2020-01-01-00-00-00.log.1"
    other = tmp_path / "notes.log"
    for path in (old, rotated, other):
        path.write_text("x")
        os.utime(path, (time.time() - 2 * 86400,) * 2)

    setup_logging(tmp_path, Logging())

    assert not old.exists()
    assert not rotated.exists()
    assert other.exists()


def write(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(text)


def test_the_newest_file_is_the_last_name(tmp_path: Path) -> None:
    write(tmp_path, "scope-logs-2026-01-02-00-00-00.log", "new")
    write(tmp_path, "scope-logs-2026-01-01-00-00-00.log", "old")
    write(tmp_path, "scope-logs-2026-01-03-00-00-00.log.1", "rotated")

    assert Logs(tmp_path).read() == ("scope-logs-2026-01-02-00-00-00.log", "new")


def test_undecodable_bytes_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "scope-logs-2026-01-01-00-00-00.log").write_bytes(b"a\xffb")

    assert Logs(tmp_path).read() == ("scope-logs-2026-01-01-00-00-00.log", "a�b")


def test_the_tail_skips_blank_lines_and_what_was_read(tmp_path: Path) -> None:
    write(tmp_path, "scope-logs-2026-01-01-00-00-00.log", "one\n\ntwo\nthree\n")
    logs = Logs(tmp_path)

    last = logs.tail(2, 0)
    write(tmp_path, "scope-logs-2026-01-01-00-00-00.log", "one\n\ntwo\nthree\nfour\n")
    newer = logs.tail(100, last.offset)
    nothing = logs.tail(100, newer.offset)

    assert last.lines == ["two", "three"]
    assert newer.lines == ["four"]
    assert nothing.lines == []
    assert nothing.offset == newer.offset


def test_without_a_log_there_is_nothing(tmp_path: Path) -> None:
    assert Logs(tmp_path).read() is None
    assert Logs(tmp_path).tail(10, 0).lines == []
