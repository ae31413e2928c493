"""Delay of `passthrough` through WHIP in and WHEP out beside a peer with Scope's signalling, in turns.

The client sends numbered pictures, which come back through the loaded pipeline; both ways use the same
server, the same pictures and a process of the same kind.

    python -m benchmarks.whip_whep --seconds 20 --rounds 3
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from benchmarks.common import BenchmarkError, add_common_options, gateway, load_pipeline
from benchmarks.passthrough import Run, measure
from benchmarks.peer import (
    CONNECT_TIMEOUT_S,
    VIDEO_MODE,
    NumberedTrack,
    PeerError,
    PeerOptions,
    PeerProcess,
    Stream,
    StreamRecord,
)
from benchmarks.results import write_result

_PATH = "benchmark"


class WhipStream(Stream):
    """One connection that publishes and another one that plays."""

    def __init__(self, url: str, pictures: list[bytes] | None, fps: int) -> None:
        super().__init__(url, None, fps)  # the player
        assert pictures is not None, "a publisher has a camera"
        self._camera = NumberedTrack(pictures, fps, self.record)
        self._publisher = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        sender = self._publisher.addTransceiver(self._camera, direction="sendonly").sender
        setattr(sender, "_send_keyframe", self._camera.send_key_frame)  # noqa: B010 - as in Stream

    async def open(self, parameters: Mapping[str, Any] = VIDEO_MODE) -> float:
        """Publish, watch, and wait for the first picture; the seconds from the first POST to it."""
        async with httpx.AsyncClient(base_url=self._url, timeout=CONNECT_TIMEOUT_S) as client:
            await client.get("/health")
            await self._publisher.setLocalDescription(await self._publisher.createOffer())
            await self._connection.setLocalDescription(await self._connection.createOffer())
            self._enlarge_receive_buffers()
            self.record.offer_sent = time.monotonic()
            await self._post(client, f"/whip/{_PATH}?takeover=1", self._publisher)
            await self._post(client, f"/whep/{_PATH}?wait=1", self._connection)
        await asyncio.wait_for(self._first_frame.wait(), CONNECT_TIMEOUT_S)
        assert self.record.first_frame is not None
        return self.record.first_frame - self.record.offer_sent

    async def close(self) -> StreamRecord:
        record = await super().close()
        await self._publisher.close()
        return record

    async def _post(self, client: httpx.AsyncClient, path: str, connection: RTCPeerConnection) -> None:
        sdp = connection.localDescription.sdp
        answer = await client.post(path, content=sdp, headers={"Content-Type": "application/sdp"})
        if answer.status_code != 201:
            raise RuntimeError(f"The server refused {path}: {answer.status_code} {answer.text}")
        await connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))


def main() -> None:
    """Run the benchmark from the command line."""
    options = _options()
    try:
        runs = _measure_all(options)
    except (BenchmarkError, PeerError) as error:
        sys.exit(f"The benchmark failed: {error}")
    summary = {name: _summary([run for run in runs if run["way"] == name]) for name in ("offer", "whip")}
    settings = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "size": "{1}x{0}".format(*options.size),
        "fps": options.fps,
    }
    result = {"settings": settings, "summary": summary, "runs": runs}
    print(f"\n{write_result(options.out, 'whip_whep', result)}")
    for name, figures in summary.items():
        print(name, figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="turns of both ways")
    add_common_options(parser)
    return parser.parse_args()


def _measure_all(options: argparse.Namespace) -> list[Run]:
    peer_options = PeerOptions(height=options.size[0], width=options.size[1], fps=options.fps)
    peers = {"offer": PeerProcess(peer_options), "whip": PeerProcess(peer_options, WhipStream)}
    runs = []
    try:
        with gateway() as server:
            load_pipeline(server)
            for turn in range(options.rounds):
                for way, peer in peers.items():
                    runs.append({"way": way, "round": turn} | measure(server, [peer], options.seconds))
                    shown = ("way", "round", "fps", "delay_ms", "gap_ms", "lost", "first_frame_ms")
                    print({key: runs[-1][key] for key in shown}, flush=True)
    finally:
        for peer in peers.values():
            peer.close()
    return runs


def _summary(runs: Sequence[Run]) -> dict[str, float]:
    """Medians over the rounds."""
    return {
        "fps": statistics.median(run["fps"]["median"] for run in runs),
        "delay_p50_ms": statistics.median(run["delay_ms"]["p50"] for run in runs),
        "delay_p95_ms": statistics.median(run["delay_ms"]["p95"] for run in runs),
        "first_frame_ms": statistics.median(run["first_frame_ms"]["p50"] for run in runs),
        "lost": statistics.median(run["lost"] for run in runs),
    }


if __name__ == "__main__":
    main()
