"""Faders by OSC beside a stream: whether requests wait, and whether each fader's last value wins.

    python -m benchmarks.osc --seconds 10

A peer streams through `passthrough`, first alone; then twenty faders send 60 times a second each, 1200
messages a second. A request to /health takes the longer, the busier the server's event loop is. At the end
every fader has to stand where it was put last.
"""

import argparse
import asyncio
import sys
import time
from typing import Any

import httpx
from pythonosc.udp_client import SimpleUDPClient

from benchmarks.common import BenchmarkError, Server, add_common_options, gateway, load_pipeline, percentiles
from benchmarks.peer import PeerError, PeerOptions, PeerProcess
from benchmarks.results import write_result

PROMPTS = 16
FADERS = ("noise_scale", "vace_context_scale", "kv_cache_attention_bias", "base_seed")
RATE = 60.0
PROBE_S = 0.02
SETTLE_S = 1.0


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each of both measurements")
    add_common_options(parser)
    options = parser.parse_args()
    camera = PeerOptions(height=options.size[0], width=options.size[1], fps=options.fps)
    try:
        rows = _measure_all(camera, options.seconds)
    except (BenchmarkError, PeerError) as error:
        sys.exit(f"The benchmark failed: {error}")
    settings = {"seconds": options.seconds, "fps": options.fps, "size": "{1}x{0}".format(*options.size)}
    print(write_result(options.out, "osc", {"settings": settings, "rows": rows}))
    for row in rows:
        print(row)


def _measure_all(camera: PeerOptions, seconds: float) -> list[dict[str, Any]]:
    peer = PeerProcess(camera)
    try:
        with gateway() as server:
            load_pipeline(server)
            peer.start_connecting(server.url)
            peer.wait_for_frames()
            time.sleep(SETTLE_S)
            return [asyncio.run(_measure(server, peer, seconds, moves=moves)) for moves in (False, True)]
    finally:
        peer.close()


async def _measure(server: Server, peer: PeerProcess, seconds: float, *, moves: bool) -> dict[str, Any]:
    """moves: whether somebody moves the faders."""
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        before, seen = await _counts(client), len(peer.record().received)
        end = time.monotonic() + seconds
        faders = asyncio.create_task(_move(server.url, end)) if moves else None
        waits = await _probe(client, end)
        row: dict[str, Any] = {"messages_per_s": 0.0, "health_ms": percentiles(waits, 50, 95, 99)}
        row["pictures_per_s"] = round((len(peer.record().received) - seen) / seconds, 1)
        if faders is not None:
            sent, last = await faders
            await asyncio.sleep(SETTLE_S)
            row |= {"messages_per_s": round(sent / seconds, 1), "sent": sent}
            row["counts"] = {k: v - before.get(k, 0) for k, v in (await _counts(client)).items()}
            row["last_values_win"] = await _stand(client) == last
        return row


async def _move(url: str, end: float) -> tuple[int, dict[str, float]]:
    """Move all faders until then; how many messages that were, and where the faders stand."""
    osc = SimpleUDPClient("127.0.0.1", int(url.rpartition(":")[2]))
    begun, sent, step = time.monotonic(), 0, 0
    stand: dict[str, float] = {}
    while time.monotonic() < end:
        step += 1
        for fader in FADERS:
            value = step % 1000 if fader == "base_seed" else 0.3 + step % 500 / 1000
            osc.send_message(f"/wanstream/all/{fader}", value)
            stand[fader] = value
        for item in range(PROMPTS):
            osc.send_message(f"/wanstream/all/prompt/{item}/weight", 1.0 + step % 50)
        sent += len(FADERS) + PROMPTS
        await asyncio.sleep(max(0.0, begun + step / RATE - time.monotonic()))
    return sent, stand


async def _probe(client: httpx.AsyncClient, end: float) -> list[float]:
    """Milliseconds of requests that ask for next to nothing."""
    waits = []
    while time.monotonic() < end:
        began = time.monotonic()
        (await client.get("/health")).raise_for_status()
        waits.append(1000 * (time.monotonic() - began))
        await asyncio.sleep(PROBE_S)
    return waits


async def _counts(client: httpx.AsyncClient) -> dict[str, int]:
    """Messages by what became of them."""
    return dict((await client.get("/api/v1/osc/status")).json()["counts"])


async def _stand(client: httpx.AsyncClient) -> dict[str, float]:
    """Where the stream's faders are."""
    parameters = (await client.get("/api/v1/session/parameters")).json()["parameters"]
    return {fader: parameters[fader] for fader in FADERS}


if __name__ == "__main__":
    main()
