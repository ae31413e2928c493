"""A WebRTC client for tests, built on aiortc: what a page does, without the page.

`python -m tests.server.peer URL [hidden]` runs one as a process of its own, which a test may kill; a hidden
one tells no candidates, as browsers tell none that the server can use.
"""

import asyncio
import inspect
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

from benchmarks.frame_numbers import luma_of, read_number
from gateway.webrtc.aiortc_patches.consent import install_patient_consent
from tests.server.camera import NumberedCamera
from tests.server.client import Answer, HttpClient

install_patient_consent()  # tests run on busy machines


@dataclass(frozen=True, slots=True)
class Received:
    """One decoded frame. at: time.monotonic(). number: None when it cannot be read."""

    at: float
    pts: int
    width: int
    height: int
    number: int | None


async def until(condition: Callable[[], Any], within_s: float, what: str) -> None:
    """Wait for `condition()`, or what it returns when awaited, to be true.

    AssertionError naming `what` and the last value after `within_s`.
    """
    deadline = time.monotonic() + within_s
    while not (value := await _value(condition())):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what} (last: {value!r})"
        await asyncio.sleep(0.02)


async def _value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


class Peer:
    """One client of one server. `direction` is that of the video section; `source` is sent when given."""

    def __init__(
        self,
        client: HttpClient,
        *,
        direction: str = "sendrecv",
        source: MediaStreamTrack | None = None,
        video: bool = True,
        audio: bool = False,
        data_channel: bool = True,
        configuration: RTCConfiguration | None = None,
        keep_pictures: bool = False,
    ) -> None:
        """configuration: of the connection; by default without STUN and TURN servers.

        keep_pictures: `pictures` gets every frame, uint8 [H, W, 3] RGB
        """
        self.client = client
        self.pc = RTCPeerConnection(configuration or RTCConfiguration(iceServers=[]))
        self.channel: RTCDataChannel | None = None
        self.session_id: str | None = None
        self.frames: list[Received] = []
        self.pictures: list[Any] = []
        self._keep_pictures = keep_pictures
        self.messages: list[dict[str, Any]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.pc.on("track", self._on_track)
        if video:
            self.pc.addTransceiver(source or "video", direction=direction)
        if audio:
            self.pc.addTransceiver("audio", direction="recvonly")
        if data_channel:
            self.open_channel()

    def open_channel(self, label: str = "parameters") -> RTCDataChannel:
        """Open a (further) data channel; messages are collected and `send` uses the newest."""
        self.channel = self.pc.createDataChannel(label, ordered=True)
        self.channel.on("message", self._on_message)
        return self.channel

    async def offer_sdp(self, *, candidates: bool = True) -> str:
        """A complete offer, with all local candidates or with none of them."""
        if not self.pc.localDescription:
            await self.pc.setLocalDescription(await self.pc.createOffer())
        lines = self.pc.localDescription.sdp.splitlines(keepends=True)
        kept = ("a=candidate", "a=end-of-candidates")
        return "".join(line for line in lines if candidates or not line.startswith(kept))

    async def offer(self, initial_parameters: Any = None, *, candidates: bool = True) -> Answer:
        """POST the offer; on success the answer is applied."""
        body = {
            "sdp": await self.offer_sdp(candidates=candidates),
            "type": "offer",
            "initialParameters": initial_parameters,
        }
        answer = await self.client.call("POST", "/api/v1/webrtc/offer", json_body=body)
        if answer.status == 200:
            await self.accept(answer.json())
        return answer

    async def accept(self, answer: dict[str, Any]) -> None:
        """Apply the server's answer: the body of a successful POST."""
        self.session_id = answer["sessionId"]
        await self.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))

    async def trickle(self, candidates: Sequence[dict[str, Any]] | None = None) -> Answer:
        """PATCH candidates: those given, or this peer's own."""
        if candidates is None:
            lines = [
                line for line in self.pc.localDescription.sdp.splitlines() if line.startswith("a=candidate:")
            ]
            candidates = [{"candidate": line[2:], "sdpMid": "0", "sdpMLineIndex": 0} for line in lines]
        path = f"/api/v1/webrtc/offer/{self.session_id}"
        return await self.client.call("PATCH", path, json_body={"candidates": list(candidates)})

    async def connected(self, within_s: float = 30.0) -> None:
        """Wait for the connection, and for the data channel when there is one."""
        await until(lambda: self.pc.connectionState == "connected", within_s, "peer connected")
        channel = self.channel
        if channel is not None:
            await until(lambda: channel.readyState == "open", within_s, "data channel open")

    async def connect(self, initial_parameters: Any = None, *, candidates: bool = True) -> "Peer":
        """Offer, accept and wait for the connection."""
        answer = await self.offer(initial_parameters, candidates=candidates)
        assert answer.status == 200, f"offer refused: {answer.status} {answer.text}"
        await self.connected()
        return self

    def send(self, message: Any) -> None:
        """Send a message; a string or bytes go out verbatim, anything else as JSON."""
        assert self.channel is not None, "this peer has no data channel"
        self.channel.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def wait_frames(self, count: int, within_s: float = 30.0) -> list[Received]:
        """Wait for `count` more frames and return them."""
        start = len(self.frames)
        await until(lambda: len(self.frames) >= start + count, within_s, f"{count} more video frames")
        return self.frames[start : start + count]

    async def wait_message(self, kind: str, within_s: float = 30.0, *, since: int = 0) -> dict[str, Any]:
        """Wait for a message of type `kind`, looking from message number `since` on."""
        await until(
            lambda: any(m.get("type") == kind for m in self.messages[since:]),
            within_s,
            f"message {kind!r} (got {self.messages[since:]})",
        )
        return next(m for m in self.messages[since:] if m.get("type") == kind)

    async def delete(self) -> Answer:
        return await self.client.call("DELETE", f"/api/v1/webrtc/offer/{self.session_id}")

    async def close(self) -> None:
        """Leave politely. Idempotent."""
        await self.pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> "Peer":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _on_message(self, data: str | bytes) -> None:
        message = json.loads(data)
        assert isinstance(message, dict), f"the server sent something that is no object: {data!r}"
        self.messages.append(message)

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "video":
            self._tasks.append(asyncio.ensure_future(self._receive(track)))

    async def _receive(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame: Any = await track.recv()
            except MediaStreamError:
                return
            number = read_number(luma_of(frame)) if frame.width >= 128 and frame.height >= 64 else None
            if self._keep_pictures:
                self.pictures.append(frame.to_ndarray(format="rgb24"))
            self.frames.append(Received(time.monotonic(), frame.pts, frame.width, frame.height, number))


def numbers_of(frames: Sequence[Received]) -> list[int]:
    """The frames' numbers. Asserts that each could be read and that they only grow."""
    numbers = [frame.number for frame in frames if frame.number is not None]
    assert len(numbers) == len(frames), "damaged pictures"
    assert numbers == sorted(set(numbers)), "pictures repeated or out of order"
    return numbers


def longest_gap(frames: Sequence[Received], since: float, end: float) -> float:
    """Longest time in seconds without a frame between two instants of time.monotonic()."""
    times = [since, *(f.at for f in frames if since < f.at < end), end]
    return max(b - a for a, b in itertools.pairwise(times))


async def _main(url: str, *, hidden: bool) -> None:
    async with Peer(HttpClient(url), source=NumberedCamera()) as peer:
        await peer.connect({"input_mode": "video"}, candidates=not hidden)
        await peer.wait_frames(5)
        sys.stdout.write(f"{peer.session_id}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], hidden="hidden" in sys.argv[2:]))
