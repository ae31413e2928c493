"""Keys on the page: from the key press to the parameter at the worker, and from a look to its first picture.

    python -m benchmarks.stage --home DIRECTORY --presses 60

A page in Chromium streams beside it, on the same machine. The time of a press is the browser's time stamp of
the event, the time of the parameter the server's log line, both by the machine's clock. The delay to the
picture is the server's own (`change_to_picture_ms`), of looks and of prompts that are sent as such.
"""

import argparse
import asyncio
import re
import statistics
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Page

from benchmarks.common import (
    BenchmarkError,
    Server,
    demo_engines,
    gateway,
    load_pipeline,
    percentiles,
    size_option,
)
from benchmarks.results import add_out_option, write_result
from streaming.specs import SPECS
from tests.server.browser import chromium, opened, start

LIMIT_MS = 50.0  # of 95 in 100 presses
LONGER = 1.1  # than a prompt's way to its picture
CHANGES = 20  # that the server's figure is made of
PAUSE_S = 0.7

_TAKEN = re.compile(r"^(\S+ \S+) - gateway\.recording\.replay - INFO - \[\S+\] The cue look-\d", re.M)
_NOTE = """() => {
    window.presses = [];
    addEventListener("keydown", (event) => presses.push(performance.timeOrigin + event.timeStamp), true);
}"""


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = sorted(name for name, spec in SPECS.items() if spec.supports_prompts)
    parser.add_argument("--pipeline", default="longlive", choices=models)
    parser.add_argument("--presses", type=int, default=60)
    parser.add_argument("--home", type=Path, required=True, help="where engines are, or are exported to")
    parser.add_argument("--no-export", action="store_true", help="take the engines in --home as they are")
    parser.add_argument("--size", type=size_option, default=(96, 96), help="HEIGHTxWIDTH of the pictures")
    add_out_option(parser)
    options = parser.parse_args()
    try:
        if not options.no_export:
            demo_engines(options.home, SPECS[options.pipeline], options.size)
        with gateway(home=options.home) as server:
            load_pipeline(server, options.pipeline, height=options.size[0], width=options.size[1])
            report = asyncio.run(measure(server, options))
    except BenchmarkError as error:
        sys.exit(f"The benchmark failed: {error}")
    settings = {name: getattr(options, name) for name in ("pipeline", "presses", "size")}
    print(write_result(options.out, "stage", {"precision": "float32", "settings": settings, **report}))
    for name, figure in report.items():
        print(f"{name}: {figure}")


async def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Press number keys beside a stream that runs, and send prompts."""
    looks = [{"name": f"look-{n}", "set": {"prompts": f"picture {n}"}} for n in range(5)]
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client, chromium() as browser:
        await client.put("/api/v1/looks", json={"version": 1, "looks": looks})
        async with opened(browser, server.url) as page:
            await start(page, SPECS[options.pipeline].name, within_s=120)
            await page.evaluate(_NOTE)
            since = len(_TAKEN.findall(await _log(client)))
            for n in range(options.presses):
                await page.keyboard.press(str(n % 5 + 1))
                await asyncio.sleep(PAUSE_S)
            presses: list[float] = await page.evaluate("presses")
            look = await _delay(client, page)
            for n in range(CHANGES):
                body = {"prompts": f"sentence {n}"}
                await client.post("/api/v1/session/parameters", json=body)
                await asyncio.sleep(PAUSE_S)
            prompt = await _delay(client, page)
            taken = [_time_ms(stamp) for stamp in _TAKEN.findall(await _log(client))[since:]]
    if len(taken) != len(presses):
        raise BenchmarkError(f"{len(presses)} keys were pressed, {len(taken)} looks arrived")
    delays = [after - before for before, after in zip(presses, taken, strict=True)]
    keys = percentiles(delays, 50, 95)
    return {
        "key_to_worker_ms": keys,
        "look_to_picture_ms": look,
        "prompt_to_picture_ms": prompt,
        "median_ms": round(statistics.median(delays), 2),
        "within_limits": {
            "key_to_worker": (keys["p95"] or 0) <= LIMIT_MS,
            "look_to_picture": look["median"] <= LONGER * prompt["median"],
        },
    }


async def _log(client: httpx.AsyncClient) -> str:
    return (await client.get("/api/v1/logs/current")).text


async def _delay(client: httpx.AsyncClient, page: Page) -> dict[str, float]:
    sessions = (await client.get("/api/v1/session/metrics")).json()["sessions"]
    return dict(sessions[await page.evaluate("wanstream.streamId")]["change_to_picture_ms"])


def _time_ms(stamp: str) -> float:
    return 1000 * datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()


if __name__ == "__main__":
    main()
