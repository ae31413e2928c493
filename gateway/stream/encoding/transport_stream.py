"""A stream's H.264 as an MPEG transport stream, for players that open an address and speak no WebRTC."""

import io
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import av

from gateway.stream.encoding.codecs import VideoPacket
from gateway.stream.encoding.packets import PacketQueue
from gateway.threads import in_media_thread

if TYPE_CHECKING:
    from gateway.stream.stream import Stream

CONTENT_TYPE: Final = "video/mp2t"
_NO_DELAY: Final = {"muxdelay": "0", "muxpreload": "0", "flush_packets": "1"}


async def transport_stream(stream: "Stream") -> AsyncIterator[bytes]:
    """Pieces of whole packets, the first of them with a key frame. Whoever reads is a viewer.

    One who is too slow is left out and closed, as others are.
    """
    packets = stream.encoders.subscribe("H264")
    reader = _Reader(packets)
    stream.add_sink(reader)
    muxer: _Muxer | None = None
    try:
        while (packet := await packets.next()) is not None:
            muxer = muxer or _Muxer(packet)
            yield await in_media_thread(muxer.mux, packet)
    finally:
        counted = packets.failure is not None
        packets.close()
        stream.remove_sink(reader, None if counted else "left")


class _Reader:
    """A sink of its stream."""

    def __init__(self, packets: PacketQueue) -> None:
        self._id = str(uuid.uuid4())
        self._since = time.time()
        self._packets = packets

    @property
    def info(self) -> Mapping[str, Any]:
        return {"kind": "mpegts", "id": self._id, "since": self._since, **self._packets.info}

    async def close(self) -> None:
        self._packets.close()


class _Muxer:
    """For one reader; key_frame: the first packet."""

    def __init__(self, key_frame: VideoPacket) -> None:
        self._first = key_frame.pts or 0
        self._written = _Written()
        self._container = av.open(self._written, "w", format="mpegts", options=_NO_DELAY)
        # The demuxer reads size and profile out of the key frame.
        with av.open(io.BytesIO(bytes(key_frame)), format="h264") as description:
            self._video = self._container.add_stream_from_template(description.streams.video[0])
        self._video.time_base = key_frame.time_base

    def mux(self, packet: VideoPacket) -> bytes:
        copy = av.Packet(bytes(packet))  # the packet belongs to others, too
        copy.stream, copy.time_base, copy.is_keyframe = self._video, packet.time_base, packet.is_keyframe
        copy.pts = copy.dts = (packet.pts or 0) - self._first
        self._container.mux_one(copy)
        return self._written.take()


class _Written:
    """A file for libav that is read at once."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data
