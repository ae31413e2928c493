"""One stream, viewers who come and go, a recorder, a fader: `python -m tests.soak --minutes 30`.

The server is a real one, whose pipeline is the double, so that nothing but the gateway can grow. Between two
rounds nobody watches, and it has to be as small as it was after the first: tasks, sockets and files exactly,
threads and memory but for what pools and allocators keep.
"""

import argparse
import asyncio
import logging
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from pythonosc.udp_client import SimpleUDPClient

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until

logger = logging.getLogger("tests.soak")

VIEWERS = 8
FADERS_PER_S = 60
_STAY_S = (0.5, 3.0)
_PATIENCE_S = 60.0  # with a viewer, on a machine that is busy
_STREAM = "soak"
_THREADS = 8  # that pools may still add, as they do when more work comes at once than ever before
_GROWTH_MB = 12.0  # of what allocators keep; and by the share below, of a long run
_GROWTH = 0.05


@dataclass(frozen=True)
class Rest:
    """The server while nobody watches."""

    at_s: float
    tasks: int
    sockets: int
    files: int
    threads: int
    memory_mb: float


async def soak(server: DoubleProcess, seconds: float, round_s: float, seed: int) -> list[Rest]:
    """What was left after each round; at least three. AssertionError when the stream or a viewer fails."""
    dice = random.Random(seed)
    await load(server.client, "longlive", {"height": 96, "width": 128})
    body = {"name": _STREAM, "parameters": {"prompts": [{"text": "a", "weight": 1.0}]}}
    answer = await server.client.call("POST", "/api/v1/streams", json_body=body)
    assert answer.status == 201, answer.text
    started = time.monotonic()
    rests: list[Rest] = []
    while len(rests) < 3 or time.monotonic() - started < seconds:
        until_s = time.monotonic() + round_s
        faders = asyncio.create_task(_fade(server, until_s))
        viewers = [_come_and_go(server, until_s, random.Random(dice.random())) for _ in range(VIEWERS)]
        recorder = asyncio.create_task(_record(server, until_s))
        counts = await asyncio.gather(*viewers, _read_mjpeg(server, until_s))
        await recorder
        await faders
        assert all(counts), f"somebody saw nothing: {counts}"
        rests.append(await _rest(server, started, rests[0] if rests else None))
        logger.info("%d viewers; %s", sum(counts), rests[-1])
    await server.client.call("DELETE", f"/api/v1/streams/{_STREAM}")
    return rests


async def _come_and_go(server: DoubleProcess, until_s: float, dice: random.Random) -> int:
    """Join, watch and leave, politely or not, until the round is over; how many times."""
    times = 0
    while time.monotonic() < until_s:
        async with Peer(server.client, direction="recvonly", data_channel=dice.random() < 0.5) as peer:
            sdp = await peer.offer_sdp()
            body = {"sdp": sdp, "type": "offer", "streamId": _STREAM, "role": "viewer"}
            answer = await server.client.call("POST", "/api/v1/webrtc/offer", json_body=body)
            if answer.status == 429:  # they come too fast together
                await asyncio.sleep(float(answer.headers["retry-after"]))
                continue
            assert answer.status == 200, answer.text
            await peer.accept(answer.json())
            try:
                await peer.connected(_PATIENCE_S)
                await peer.wait_frames(3, _PATIENCE_S)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{_told_of(peer, server)}") from error
            await asyncio.sleep(dice.uniform(*_STAY_S))
            if dice.random() < 0.5:
                await peer.delete()
            times += 1
    return times


def _told_of(peer: Peer, server: DoubleProcess) -> str:
    """What both sides know of a viewer that failed."""
    states = {
        (transceiver.mid, transport.state, transport.transport.state)
        for transceiver in peer.pc.getTransceivers()
        for transport in [transceiver.receiver.transport]
    }
    lines = server.log.splitlines()
    about = [line for line in lines if str(peer.session_id) in line or "Traceback" in line]
    told = [f"viewer {peer.session_id}: {peer.pc.connectionState}, (mid, DTLS, ICE): {states}", *about]
    return "\n".join([*told, "the server at last:", *lines[-20:]])


async def _read_mjpeg(server: DoubleProcess, until_s: float) -> int:
    """Open and leave the stream as MJPEG; how many times."""
    times = 0
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        while time.monotonic() < until_s:
            async with client.stream("GET", f"/api/v1/streams/{_STREAM}/mjpeg?fps=30") as answer:
                assert answer.status_code == 200
                received = 0
                async for piece in answer.aiter_bytes():
                    received += len(piece)
                    if received > 20_000:
                        break
            times += 1
    return times


async def _record(server: DoubleProcess, until_s: float) -> None:
    """One take, which is looked at and deleted."""
    path = f"/api/v1/streams/{_STREAM}/recordings"
    begun = await server.client.call("POST", path, json_body={})
    assert begun.status == 201, begun.text
    await asyncio.sleep(max(0.0, until_s - time.monotonic()))
    ended = await server.client.call("POST", f"{path}/stop", json_body={})
    assert ended.status == 200, ended.text
    take = ended.json()
    assert take["frames"] > 0, take
    deleted = await server.client.call("DELETE", f"/api/v1/takes/{take['take']}")
    assert deleted.status == 204, deleted.text


async def _fade(server: DoubleProcess, until_s: float) -> None:
    osc = SimpleUDPClient("127.0.0.1", server.port)
    while time.monotonic() < until_s:
        osc.send_message(f"/wanstream/{_STREAM}/noise_scale", time.monotonic() % 1)
        await asyncio.sleep(1 / FADERS_PER_S)


async def _rest(server: DoubleProcess, started: float, first: Rest | None) -> Rest:
    """Wait until everybody's traces are gone, and look."""

    async def empty() -> bool:
        stream = (await server.client.call("GET", f"/api/v1/streams/{_STREAM}")).json()
        return not stream["sinks"]

    async def as_before() -> bool:
        return first is None or len(server.tasks()) <= first.tasks

    await until(empty, 60, "the end of all viewers")
    await until(lambda: _sockets(server)[0] <= (first.sockets if first else 10), 60, "the end of all sockets")
    try:
        await until(as_before, 40, f"no more than {first and first.tasks} tasks")
    except AssertionError as error:
        raise AssertionError(f"{error}: {server.tasks()}") from error
    server.forget_chunks()
    process = psutil.Process(server.pid)
    sockets, files = _sockets(server)
    memory_mb = process.memory_info().rss / 1e6
    return Rest(
        round(time.monotonic() - started, 1),
        len(server.tasks()),
        sockets,
        files,
        process.num_threads(),
        round(memory_mb, 1),
    )


def _sockets(server: DoubleProcess) -> tuple[int, int]:
    """Sockets that are not connections of this very look, and other open files."""
    process = psutil.Process(server.pid)
    connections = [c for c in process.net_connections() if c.status in ("NONE", "LISTEN")]
    return len(connections), process.num_fds() - len(process.net_connections())


def judge(rests: Sequence[Rest]) -> list[str]:
    """What grew from the first rest to the last; memory from the second, when all is in use."""
    first, last = rests[0], rests[-1]
    problems = [
        f"{name}: {before} at first, {after} at last"
        for name, before, after, allowed in (
            ("tasks", first.tasks, last.tasks, 0),
            ("sockets", first.sockets, last.sockets, 0),
            ("files", first.files, last.files, 2),
            ("threads", first.threads, last.threads, _THREADS),
        )
        if after > before + allowed
    ]
    warm = rests[max(1, len(rests) // 5)].memory_mb
    if last.memory_mb > warm * (1 + _GROWTH) + _GROWTH_MB:
        problems.append(f"memory: {warm} MB when warm, {last.memory_mb} MB at last")
    return problems


def main() -> None:
    """Run it from the command line; code 1 when something grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--round", type=float, default=20.0, help="seconds between two looks")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logger.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as directory:
        server = DoubleProcess(Path(directory), {"WANSTREAM_MAX_VIEWERS": "16"})
        try:
            rests = asyncio.run(soak(server, 60 * options.minutes, options.round, options.seed))
        finally:
            server.stop(within_s=30.0)
    problems = judge(rests)
    summary: dict[str, Any] = {"first": asdict(rests[0]), "last": asdict(rests[-1]), "rounds": len(rests)}
    logger.info("%s", summary)
    raise SystemExit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
