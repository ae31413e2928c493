"""Outgoing video: packets of a stream's encoder as one WebRTC track (api.md 10.3)."""

import time
from collections.abc import Mapping
from typing import Any

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from gateway.stream.encoding.codecs import VideoPacket
from gateway.stream.encoding.encoders import Encoders
from gateway.stream.encoding.packets import PacketQueue
from gateway.stream.encoding.rate import LinkRate


class EncodedTrack(MediaStreamTrack):
    """The track that a peer sees. It costs nothing until its sender takes the first packet."""

    kind = "video"

    def __init__(self, encoders: Encoders, protocol: str = "webrtc") -> None:
        """protocol: by which it was asked for, a moment ago."""
        super().__init__()
        self._encoders = encoders
        self._protocol = protocol
        self._made = time.monotonic()
        self._sends = False
        self.packets: PacketQueue | None = None  # once there is a sender

    @property
    def failure(self) -> str | None:
        """Why no more packets come, for the user."""
        return None if self.packets is None else self.packets.failure

    @property
    def info(self) -> Mapping[str, Any]:
        """What a stream tells of it; empty until there is a sender."""
        return {} if self.packets is None else self.packets.info

    def subscribe(self, codec: str, link: LinkRate | None = None) -> PacketQueue | None:
        """Take packets of `codec` for a sender that knows its network. None: the track was stopped before.

        Only the first call has an effect.
        """
        if self.packets is None and self.readyState == "live":
            self.packets = self._encoders.subscribe(codec, link=link)
        return self.packets

    async def recv(self) -> VideoPacket:
        packet = None if self.packets is None else await self.packets.next()
        if packet is None:
            self.stop()
            raise MediaStreamError(self.failure or "the session ended")
        if not self._sends:
            self._sends = True
            self._encoders.observer.first_picture(self._protocol, time.monotonic() - self._made)
        return packet

    def stop(self) -> None:
        super().stop()
        if self.packets is not None:
            self.packets.close()
