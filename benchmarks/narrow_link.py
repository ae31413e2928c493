"""Pictures per second and longest gap that Chromium shows over a link of limited speed, by source tree.

    python -m benchmarks.narrow_link --limits 2000000,500000 --seconds 20 . ../other

Needs Chromium, iproute2 and root (`scripts/setup.sh test`), like the test of a narrow network. The trees are
measured in turns; each begins without a limit and goes down.
"""

import argparse
import asyncio
import itertools
import json
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.async_api import Page

from benchmarks.results import add_out_option, write_result
from tests.server.browser import ALLOW_CAMERA, FAKE_CAMERA, chromium, opened, start
from tests.server.narrow_link import NarrowLink, narrow_link
from tests.server.processes import ServerProcess
from tests.server.test_narrow_link import write_busy_video

SETTLE_S = 15.0
NOTE_PICTURES = """() => {
    window.shownAt = [];
    const video = document.querySelector("#output");
    const note = (now) => { window.shownAt.push(now); video.requestVideoFrameCallback(note); };
    video.requestVideoFrameCallback(note);
}"""


def main() -> None:
    """Run the benchmark from the command line."""
    options = _options()
    rows = []
    for round_number in range(options.rounds):
        for tree in map(Path.resolve, options.trees):
            for row in asyncio.run(_measure(tree, options.limits, options.seconds)):
                rows.append({"tree": str(tree), "round": round_number, **row})
                print(json.dumps(rows[-1]), flush=True)
    settings = {"limits": options.limits, "seconds": options.seconds, "settle_s": SETTLE_S}
    print(write_result(options.out, "narrow_link", {"settings": settings, "rows": rows}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", nargs="*", type=Path, default=[Path()], help="source trees of the server")
    parser.add_argument("--limits", type=_numbers, default=[2_000_000, 500_000], help="bit/s: 2000000,500000")
    parser.add_argument("--seconds", type=float, default=20.0, help="that are measured at each limit")
    parser.add_argument("--rounds", type=int, default=1, help="how often all trees are measured")
    add_out_option(parser)
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


async def _measure(tree: Path, limits: list[int], seconds: float) -> list[dict[str, Any]]:
    with narrow_link() as link, tempfile.TemporaryDirectory(prefix="wanstream-benchmark-") as name:
        home = Path(name)
        options = ["-N", "--host", "0.0.0.0"]
        server = ServerProcess("gateway", home / "home", options=options, directory=tree)
        try:
            write_busy_video(home / "busy.y4m")
            return await _watch(link, f"http://{link.address}:{server.port}", home, limits, seconds)
        finally:
            server.stop()


async def _watch(
    link: NarrowLink, url: str, home: Path, limits: list[int], seconds: float
) -> list[dict[str, Any]]:
    wrapper = home / "chromium"
    program = shlex.join(link.inside(shutil.which("chromium") or "chromium"))
    wrapper.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    wrapper.chmod(0o755)
    arguments = (
        FAKE_CAMERA,
        ALLOW_CAMERA,
        f"--use-file-for-fake-video-capture={home / 'busy.y4m'}",
        f"--unsafely-treat-insecure-origin-as-secure={url}",
    )
    rows = []
    async with chromium(*arguments, wrapper=wrapper) as browser, opened(browser, url) as page:
        await start(page)
        await page.evaluate(NOTE_PICTURES)
        await asyncio.sleep(SETTLE_S)
        for limit in limits:
            link.limit(limit)
            settling = await _shown(page, SETTLE_S)
            row = {"limit": limit, "settling": settling, "settled": await _shown(page, seconds)}
            rows.append(row)
    return rows


async def _shown(page: Page, seconds: float) -> dict[str, float]:
    """What the page shows in the next seconds."""
    began = await page.evaluate("performance.now()")
    await asyncio.sleep(seconds)
    end = await page.evaluate("performance.now()")
    shown = [at for at in await page.evaluate("window.shownAt") if began <= at <= end]
    marks = [began, *shown, end]
    gaps = [b - a for a, b in itertools.pairwise(marks)]
    return {"pictures_per_s": round(1000 * len(shown) / (end - began), 1), "longest_gap_ms": round(max(gaps))}


if __name__ == "__main__":
    main()
