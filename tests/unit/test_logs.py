"""Log files: names, redaction, the newest one, its tail."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.logs import Logs, redact, setup_logging


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


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


def test_ordinary_text_stays() -> None:
    text = "Loading LongLive with {'height': 320} took 3 tokens"

    assert redact(text) == text


@pytest.mark.usefixtures("restored_logging")
def test_secrets_do_not_reach_the_file(tmp_path: Path) -> None:
    path = setup_logging(tmp_path, verbose=False)

    logging.getLogger("gateway.test").info("download with token=%s", "s3cr3tvalue")

    text = path.read_text()
    assert "download with token=***" in text
    assert " - gateway.test - INFO - " in text


@pytest.mark.usefixtures("restored_logging")
def test_files_older_than_a_day_are_removed(tmp_path: Path) -> None:
    old = tmp_path / "scope-logs-2020-01-01-00-00-00.log"
    rotated = tmp_path / "scope-logs-2020-01-01-00-00-00.log.1"
    other = tmp_path / "notes.log"
    for path in (old, rotated, other):
        path.write_text("x")
        os.utime(path, (time.time() - 2 * 86400,) * 2)

    setup_logging(tmp_path, verbose=False)

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
