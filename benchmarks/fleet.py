"""Two gateways behind Envoy: what routing costs, how soon a lost viewer streams again, CPU of a viewer.

    python -m benchmarks.fleet [--offers 40] [--per-minute 200] [--losses 5] [--seconds 8]

The gateways have the tests' double in Triton's place, so nothing tells of engines. Viewers are aiortc peers
of this process; the page that loses its gateway is in Chromium. All on one machine, over loopback.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results import add_out_option, write_result
from tests.fleet.gateways import PROMPTS
from tests.fleet.test_losses import moved, show
from tests.routing.test_envoy import CookieClient, Routed, routed
from tests.server.browser import chromium, opened
from tests.server.client import HttpClient
from tests.server.peer import Peer

SIZE = (320, 576)
FPS = 16.0  # of the double: 4 pictures in 0.25 s


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and worst in ms."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return {
        name: round(1000 * value, 1)
        for name, value in (("median", statistics.median(ordered)), ("p95", p95), ("worst", ordered[-1]))
    }


async def offered(client: HttpClient) -> tuple[float, list[int]]:
    """Seconds that an offer took, and the statuses of a whole signalling: offer, candidates, end."""
    async with Peer(client) as peer:
        sdp = await peer.offer_sdp()
        body = {"sdp": sdp, "type": "offer", "initialParameters": PROMPTS}
        started = time.perf_counter()
        answer = await client.call("POST", "/api/v1/webrtc/offer", json_body=body)
        took = time.perf_counter() - started
        if answer.status != 200:
            return took, [answer.status]
        peer.session_id = answer.json()["sessionId"]
        return took, [answer.status, (await peer.trickle([])).status, (await peer.delete()).status]


async def offers(place: Routed, count: int) -> dict[str, Any]:
    """In turns, so that both meet the same machine."""
    direct, through = [], []
    for number in range(count):
        gateway = place.gateways[number % len(place.gateways)]
        direct.append((await offered(gateway.client))[0])
        through.append((await offered(HttpClient(place.envoy.url)))[0])
    return {"count": count, "direct_ms": spread(direct), "through_envoy_ms": spread(through)}


async def signalling(place: Routed, per_minute: int) -> dict[str, Any]:
    """As many sessions as told, evenly over a minute: begun and ended."""
    started = time.perf_counter()
    tasks = []
    for number in range(per_minute):
        await asyncio.sleep(max(0.0, started + 60.0 * number / per_minute - time.perf_counter()))
        tasks.append(asyncio.create_task(offered(CookieClient(place.envoy.url))))
    results = await asyncio.gather(*tasks)
    statuses = [status for _, found in results for status in found]
    return {
        "sessions": per_minute,
        "seconds": round(time.perf_counter() - started, 1),
        "errors": sum(status >= 400 for status in statuses),
        "offer_ms": spread([took for took, _ in results]),
    }


async def losses(count: int) -> dict[str, Any]:
    """From kill -9 of a page's gateway until the page shows pictures of the other one."""
    seconds = []
    async with chromium() as browser:
        for _ in range(count):
            with tempfile.TemporaryDirectory() as directory:
                async with routed(Path(directory)) as place, opened(browser, place.envoy.url) as page:
                    before = await show(page, "a paper boat")
                    old = await place.holder(before)
                    started = time.perf_counter()
                    old.kill()
                    await moved(page, before, 60)
                    seconds.append(time.perf_counter() - started)
    return {"count": count, "reconnect_ms": spread(seconds), "all_s": [round(each, 2) for each in seconds]}


async def cpu_of_viewers(place: Routed, seconds: float) -> list[dict[str, Any]]:
    """CPU time of a gateway whose viewers have a stream each."""
    gateway = place.gateways[0]
    gateway.set_faults(chunk_delay_s=4 / FPS)
    process = psutil.Process(gateway.pid)
    found = []
    for count in (0, 1, 2, 4):
        peers = [Peer(gateway.client) for _ in range(count)]
        try:
            for peer in peers:
                await peer.connect(PROMPTS)
                await peer.wait_frames(2)
            await asyncio.sleep(1)
            before, started = process.cpu_times(), time.perf_counter()
            frames = sum(len(peer.frames) for peer in peers)
            await asyncio.sleep(seconds)
            elapsed, after = time.perf_counter() - started, process.cpu_times()
            frames = sum(len(peer.frames) for peer in peers) - frames
        finally:
            await asyncio.gather(*(peer.close() for peer in peers))
        cores = (after.user + after.system - before.user - before.system) / elapsed
        fps = frames / elapsed / count if count else 0.0
        found.append({"viewers": count, "cores": round(cores, 3), "fps_each": round(fps, 1)})
    return found


async def run(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        async with routed(Path(directory)) as place:
            result["offers"] = await offers(place, options.offers)
            result["signalling"] = await signalling(place, options.per_minute)
    height, width = SIZE
    params = f'{{"height": {height}, "width": {width}}}'
    with tempfile.TemporaryDirectory() as directory:
        async with routed(Path(directory), WANSTREAM_PIPELINE_PARAMS=params) as place:
            viewers = await cpu_of_viewers(place, options.seconds)
            result["gateway_cpu"] = {"height": height, "width": width, "viewers": viewers}
    result["losses"] = await losses(options.losses)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--offers", type=int, default=40, help="of each way")
    parser.add_argument("--per-minute", type=int, default=200, help="signalling sessions through Envoy")
    parser.add_argument("--losses", type=int, default=5, help="gateways that are killed under a page")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement of CPU time")
    add_out_option(parser)
    options = parser.parse_args()
    result = asyncio.run(run(options))
    print(write_result(options.out, "fleet", result))
    print(result)


if __name__ == "__main__":
    main()
