"""Triton's output becomes log records of the right severity."""

import asyncio
import logging
import os

import pytest

from gateway.embedded.log import LogLine, forward, parse


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            'I1120 11:27:09.123456 12345 server.cc:604] "Waiting for in-flight requests to complete."',
            LogLine(logging.INFO, "Waiting for in-flight requests to complete."),
        ),
        (
            "W0101 00:00:00.000001 1 model.py:7] plain text",
            LogLine(logging.WARNING, "plain text"),
        ),
        (
            'E1120 11:27:09.123456 12345 model.py:3] "Traceback:\\n  File \\"x.py\\""',
            LogLine(logging.ERROR, 'Traceback:\n  File "x.py"'),
        ),
        (
            'F1120 11:27:09.123456 12345 a.cc:3] "broken \\q escape"',
            LogLine(logging.CRITICAL, "broken \\q escape"),
        ),
        (
            "I1120 11:27:09.1 1 model_lifecycle.cc:849] \"successfully loaded 'passthrough'\"",
            LogLine(logging.DEBUG, "successfully loaded 'passthrough'"),
        ),
        ("printed by a model", LogLine(logging.INFO, "printed by a model")),
        ("I am no log line", LogLine(logging.INFO, "I am no log line")),
        ("+-------+-----+", LogLine(logging.DEBUG, "+-------+-----+")),
        ("| Model | OK  |", LogLine(logging.DEBUG, "| Model | OK  |")),
        (
            'E1120 11:27:09.1 1 cuda.cc:3] "CudaDriverHelper has not been initialized."',
            LogLine(logging.DEBUG, "CudaDriverHelper has not been initialized."),
        ),
    ],
)
def test_severity_and_text_are_found(line: str, expected: LogLine) -> None:
    assert parse(line) == expected


async def test_lines_are_forwarded_whole_however_they_arrive(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="triton")
    reading, writing = os.pipe()
    lines: list[str] = []
    forwarding = asyncio.create_task(forward(reading, lines.append))

    for part in (b"fir", b"st\nsecond \xc3", b"\xbc\n\nE1120 1", b'1:27:09.1 1 a.cc:3] "bad"\nno end'):
        os.write(writing, part)
        await asyncio.sleep(0.01)
    os.close(writing)
    await forwarding

    assert lines == ["first", "second ü", 'E1120 11:27:09.1 1 a.cc:3] "bad"', "no end"]
    assert [(r.levelno, r.getMessage()) for r in caplog.records if r.name == "triton"] == [
        (logging.INFO, "first"),
        (logging.INFO, "second ü"),
        (logging.ERROR, "bad"),
        (logging.INFO, "no end"),
    ]


async def test_endless_line_and_bytes_that_are_no_text_do_not_stop_the_log() -> None:
    reading, writing = os.pipe()
    lines: list[str] = []
    forwarding = asyncio.create_task(forward(reading, lines.append))

    await asyncio.to_thread(_write_all, writing, b"x" * 300_000 + b"\n\xff\xfe\nend\n")
    os.close(writing)
    await forwarding

    assert sum(line.count("x") for line in lines) == 300_000
    assert lines[-2:] == ["\ufffd\ufffd", "end"]


def _write_all(fd: int, data: bytes) -> None:
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
