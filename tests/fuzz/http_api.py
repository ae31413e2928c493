"""Random requests, made by schemathesis from the server's own /openapi.json."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

# Would ask servers on the internet for files, or send them pictures.
_NEVER = [f"--exclude-operation-id={n}" for n in ("loras_install", "loras_download", "publications_create")]
_NEVER += [  # 503: there is no place beside the stream that goes on
    f"--exclude-operation-id={name}" for name in ("streams_create", "sessions_start")
]
_ENDLESS = ("osc_stream", "streams_events", "streams_mjpeg", "streams_transport", "sessions_transport")
_NEVER += [f"--exclude-operation-id={name}" for name in _ENDLESS]
_NEVER += ["--exclude-path-regex=^/api/v1/wh(ip|ep)"]  # take SDP, whose mutations have tests of their own
# A value of the right form may still make no sense: a LoRA that is not there, an SDP without video.
_CHECKS = ["--exclude-checks=positive_data_acceptance"]

ENDS_STREAMS = ("pipelines_load", "pipelines_unload", "sessions_update")
"""Ids of the operations that stop or pause the streams of other clients, as they should."""


async def fuzz_http(
    url: str,
    directory: Path,
    seconds: float,
    seed: int,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
) -> None:
    """Send requests for about `seconds`; AssertionError with schemathesis's report when an answer is wrong.

    Wrong are: any 5xx, a status, content type or body that is not documented, and success for a request that
    the document forbids. only, without: operation ids. Files of schemathesis go into `directory`.
    """
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--no-color"]
    command += [f"--max-time={max(1, round(seconds))}", f"--seed={seed}", "--request-timeout=60"]
    command += _CHECKS
    command += [f"--include-operation-id={name}" for name in only]
    command += [f"--exclude-operation-id={name}" for name in without]
    command += [] if only else _NEVER
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds + 180)
    finally:
        if process.returncode is None:
            process.kill()
    report = output.decode(errors="replace")
    assert process.returncode == 0, report[-20_000:]
    assert " generated" in report, f"no request was made:\n{report}"
