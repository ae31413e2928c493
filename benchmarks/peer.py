"""A WebRTC client in its own process that notes when each picture comes; its own ones have numbers.

The pictures that it sends are encoded once, at the start, and then sent in a loop, so that the client leaves
the machine's cores to the server. Received frames are decoded, as a viewer does.
"""

import asyncio
import contextlib
import functools
import json
import multiprocessing as mp
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing.connection import Connection
from typing import Any

import av
import httpx
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

from benchmarks.frame_numbers import CLOCK_RATE, NumberedVideo, luma_of, read_number, spread
from gateway.webrtc.aiortc_patches.jitter_buffer import install_jitter_buffer

START_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 30.0
LOOP_FRAMES = 300  # longer than any delay, so that a number is never ambiguous
BITRATE = 1_000_000
RECEIVE_BUFFER_BYTES = 1 << 20
SAMPLES = 24  # pictures that a record keeps
VIDEO_MODE: Mapping[str, Any] = {"input_mode": "video"}


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """What a peer sends. Sizes in pixels.

    camera: False: it only watches, and the pictures that it gets have no numbers
    """

    height: int
    width: int
    fps: int
    camera: bool = True


@dataclass(slots=True)
class StreamRecord:
    """What one connection saw; all times on the system-wide monotonic clock, in seconds."""

    offer_sent: float = 0.0
    first_frame: float | None = None
    sent: list[tuple[int, float]] = field(default_factory=list)  # (number, handed to the transport)
    received: list[tuple[int | None, float]] = field(
        default_factory=list
    )  # (number, decoded); None: unreadable
    stalled: int = 0  # frames by which the client fell behind its own rate
    bytes_received: int = 0
    messages: list[Any] = field(default_factory=list)  # what the server said on the data channel
    spreads: list[float] = field(default_factory=list)  # of each received picture, see `spread`
    samples: list[Any] = field(default_factory=list)  # the last received pictures, uint8 [H, W, 3] RGB


class PeerError(RuntimeError):
    """The peer process failed; the text holds its traceback."""


class PeerProcess:
    """Handle on one peer process; it can connect and disconnect any number of times."""

    def __init__(self, options: PeerOptions, kind: "type[Stream] | None" = None) -> None:
        """kind: of its connections; None: `Stream`."""
        context = mp.get_context("spawn")
        self._pipe, remote = context.Pipe()
        self._process = context.Process(
            target=_main,
            args=(remote, encode_loop(options) if options.camera else None, options.fps, kind or Stream),
            daemon=True,
        )
        self._process.start()
        remote.close()
        self._answer(START_TIMEOUT_S)  # its imports are done

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def start_connecting(self, url: str, parameters: Mapping[str, Any] = VIDEO_MODE) -> None:
        """Send an offer to the server at `url`; `wait_for_frames` tells how it went."""
        self._pipe.send(("connect", (url, parameters)))

    def wait_for_frames(self) -> float:
        """Seconds from sending the offer to the first decoded frame. Raises PeerError."""
        first_frame_s: float = self._answer(CONNECT_TIMEOUT_S + 10)
        return first_frame_s

    def send(self, parameters: Mapping[str, Any]) -> float:
        """Send a message over the data channel; when it was sent, on the system-wide monotonic clock."""
        self._pipe.send(("send", parameters))
        sent: float = self._answer(timeout_s=30)
        return sent

    def record(self) -> StreamRecord:
        """What the connection has seen so far; it goes on."""
        self._pipe.send(("record", None))
        record: StreamRecord = self._answer(timeout_s=30)
        return record

    def disconnect(self) -> StreamRecord:
        """Close the connection and return what it saw."""
        self._pipe.send(("disconnect", None))
        record: StreamRecord = self._answer(timeout_s=30)
        return record

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(("exit", None))
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise PeerError(f"A peer process did not answer within {timeout_s:.0f} s.")
        try:
            ok, value = self._pipe.recv()
        except EOFError:
            raise PeerError(f"A peer process died with exit code {self._process.exitcode}.") from None
        if not ok:
            raise PeerError(value)
        return value


def _main(pipe: Connection, pictures: list[bytes] | None, fps: int, kind: "type[Stream]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    install_jitter_buffer()  # aiortc's own shows a picture when the next one begins; browsers do not wait
    asyncio.run(_serve(pipe, pictures, fps, kind))


async def _serve(pipe: Connection, pictures: list[bytes] | None, fps: int, kind: "type[Stream]") -> None:
    stream: Stream | None = None
    pipe.send((True, None))
    while True:
        command, argument = await asyncio.to_thread(pipe.recv)
        if command == "exit":
            return
        try:
            if command == "connect":
                stream = kind(argument[0], pictures, fps)
                pipe.send((True, await stream.open(argument[1])))
                continue
            assert stream is not None, "the peer is not connected"
            if command == "send":
                pipe.send((True, stream.send(argument)))
            elif command == "record":
                pipe.send((True, stream.record))
            else:
                pipe.send((True, await stream.close()))
        except Exception:  # process boundary: the parent raises it
            pipe.send((False, traceback.format_exc()))


@functools.cache
def encode_loop(options: PeerOptions) -> list[bytes]:
    """VP8 pictures 0..LOOP_FRAMES-1 with their numbers; the first one is a key frame."""
    video = NumberedVideo(options.height, options.width)
    context = av.CodecContext.create("libvpx", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = options.width, options.height, "yuv420p"
    context.framerate = Fraction(options.fps)
    context.time_base = Fraction(1, CLOCK_RATE)
    context.bit_rate = BITRATE
    context.gop_size = LOOP_FRAMES + 1
    rate = str(BITRATE)
    context.options = {
        "deadline": "realtime",
        "cpu-used": "-6",
        "lag-in-frames": "0",
        "max-intra-rate": "300",
        **dict.fromkeys(("minrate", "maxrate", "bufsize"), rate),
    }
    pictures = (video.frame(number, number / options.fps) for number in range(LOOP_FRAMES))
    return [b"".join(bytes(packet) for packet in context.encode(picture)) for picture in pictures]


class NumberedTrack(MediaStreamTrack):
    """The camera: numbered pictures at a steady rate, already encoded."""

    kind = "video"

    def __init__(self, pictures: list[bytes], fps: int, record: StreamRecord) -> None:
        super().__init__()
        self._pictures, self._fps, self._record = pictures, fps, record
        self._next = 0
        self._frames = 0
        self._started: float | None = None  # of the schedule; moves when the client falls behind
        self._origin = 0.0  # of the RTP timestamps

    def send_key_frame(self) -> None:
        """Go back to the first picture of the loop."""
        self._next = 0

    async def recv(self) -> "av.Packet[Any]":
        if self.readyState != "live":
            raise MediaStreamError("the camera was closed")
        now = time.monotonic()
        if self._started is None:
            self._started = self._origin = now
        late = int((now - self._started) * self._fps) - self._frames
        if late > 0:  # a camera does not make up for lost time either
            self._record.stalled += late
            self._started += late / self._fps
        await asyncio.sleep(self._started + self._frames / self._fps - now)
        number = self._next
        self._next = (number + 1) % len(self._pictures)
        self._frames += 1
        packet: av.Packet[Any] = av.Packet(self._pictures[number])
        packet.time_base = Fraction(1, CLOCK_RATE)
        packet.pts = round((time.monotonic() - self._origin) * CLOCK_RATE)
        self._record.sent.append((number, time.monotonic()))
        return packet


class Stream:
    """One connection to a server with Scope's signalling."""

    def __init__(
        self,
        url: str,
        pictures: list[bytes] | None,
        fps: int,
        *,
        join: Mapping[str, Any] | None = None,
        codec: str | None = None,
        watches: bool = True,
    ) -> None:
        """pictures: to send; None: it only watches. join: keys of an offer to see another's numbered stream.

        codec: that it prefers, VP8 or H264; None: the first one that there is. watches: False: it only sends.
        """
        self.record = StreamRecord()
        self._join = join
        self._url = url
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        if watches:
            self._channel = self._connection.createDataChannel("parameters", ordered=True)
            self._channel.on("message", self.record.messages.append)
        self._camera: NumberedTrack | None = None
        if pictures is None:
            transceiver = self._connection.addTransceiver("video", direction="recvonly")
            if codec is not None:
                known = RTCRtpReceiver.getCapabilities("video").codecs
                transceiver.setCodecPreferences([each for each in known if each.name == codec])
        else:
            self._camera = NumberedTrack(pictures, fps, self.record)
            direction = "sendrecv" if watches else "sendonly"
            sender = self._connection.addTransceiver(self._camera, direction=direction).sender
            # aiortc has no public way to tell a track of encoded packets that a key frame is wanted.
            setattr(sender, "_send_keyframe", self._camera.send_key_frame)  # noqa: B010
        self._samples: deque[av.VideoFrame] = deque(maxlen=SAMPLES)
        self._first_frame = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._connection.on("track", self._on_track)

    async def open(self, parameters: Mapping[str, Any] = VIDEO_MODE) -> float:
        """Connect and wait for the first frame; the seconds from sending the offer to it."""
        async with httpx.AsyncClient(base_url=self._url, timeout=CONNECT_TIMEOUT_S) as client:
            await client.get("/health")  # the time to first frame shall not hold the client's own start
            await self._connection.setLocalDescription(await self._connection.createOffer())
            offer = self._connection.localDescription
            self._enlarge_receive_buffers()
            more = {"initialParameters": dict(parameters)} if self._join is None else dict(self._join)
            body = {"sdp": offer.sdp, "type": offer.type, **more}
            self.record.offer_sent = time.monotonic()
            answer = await client.post("/api/v1/webrtc/offer", json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"The server refused the offer: {answer.status_code} {answer.text}")

        description = RTCSessionDescription(sdp=answer.json()["sdp"], type=answer.json()["type"])
        await self._connection.setRemoteDescription(description)
        await asyncio.wait_for(self._first_frame.wait(), CONNECT_TIMEOUT_S)
        assert self.record.first_frame is not None
        return self.record.first_frame - self.record.offer_sent

    async def publish(self, name: str) -> None:
        """Send the pictures to a stream of this name, by WHIP (RFC 9725)."""
        await self._connection.setLocalDescription(await self._connection.createOffer())
        async with httpx.AsyncClient(base_url=self._url, timeout=CONNECT_TIMEOUT_S) as client:
            sdp, kind = self._connection.localDescription.sdp, {"Content-Type": "application/sdp"}
            answer = await client.post(f"/whip/{name}", content=sdp, headers=kind)
        if answer.status_code != 201:
            raise RuntimeError(f"The server refused the offer: {answer.status_code} {answer.text}")
        await self._connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))

    async def close(self) -> StreamRecord:
        """Disconnect; what was seen."""
        for report in (await self._connection.getStats()).values():
            if report.type == "transport":
                self.record.bytes_received = report.bytesReceived
        if self._camera is not None:
            self._camera.stop()
        await self._connection.close()
        if self._reader is not None:
            await self._reader
        self.record.samples = [frame.to_ndarray(format="rgb24") for frame in self._samples]
        return self.record

    def send(self, parameters: Mapping[str, Any]) -> float:
        """Send a message over the data channel; the time."""
        now = time.monotonic()
        self._channel.send(json.dumps(dict(parameters)))
        return now

    def drop_packets(self) -> None:
        """Take video packets from now on, and do nothing with them."""
        for transceiver in self._connection.getTransceivers():
            transceiver.receiver._enabled = False

    def _enlarge_receive_buffers(self) -> None:
        """As browsers do: Linux' default of 208 KiB holds about 90 packets, less than one key frame."""
        for transceiver in self._connection.getTransceivers():
            for protocol in transceiver.sender.transport.transport._connection._protocols:
                udp = protocol.transport.get_extra_info("socket")
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._reader = asyncio.create_task(self._read(track))

    async def _read(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.VideoFrame)
                now = time.monotonic()
                if self.record.first_frame is None:
                    self.record.first_frame = now
                    self._first_frame.set()
                luma = luma_of(frame)
                has_numbers = self._camera is not None or self._join is not None
                number = read_number(luma) if has_numbers else None
                self.record.received.append((number, now))
                self.record.spreads.append(spread(frame))
                self._samples.append(frame)
