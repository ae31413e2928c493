"""aiortc's RTP sender, which knows its network: for its encoder, and to not flood it.

A full network loses packets, the viewer asks for each of them again every few milliseconds, and aiortc sends
them all: at 500 kbit/s no picture came through for ten seconds after the encoder had slowed down. And a key
frame of such a stream, sent in one burst, is longer than the network's queue.
"""

import asyncio
from contextvars import ContextVar
from typing import Any, Final

from aiortc import RTCRtpSender, rtcpeerconnection, rtcrtpsender
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import AnyRtcpPacket, RtcpRrPacket, RtcpSrPacket
from aiortc.stats import RTCRemoteInboundRtpStreamStats

from gateway.stream.encoding.packets import PacketQueue
from gateway.stream.encoding.rate import LinkRate
from gateway.webrtc.aiortc_patches.feedback import hand_on
from gateway.webrtc.aiortc_patches.members import require_members
from gateway.webrtc.pacing import Pacer
from gateway.webrtc.track import EncodedTrack

require_members(rtcpeerconnection, "RTCRtpSender")
require_members(rtcrtpsender, "RTP_HISTORY_SIZE")
require_members(RTCRtpSender, "_handle_rtcp_packet", "_next_encoded_frame", "_retransmit")
require_members(RTCDtlsTransport, "_send_rtp")

_HISTORY_PACKETS: Final = 1024  # that can be sent again: 1.5 s at 7 Mbit/s
_sender: ContextVar["InformedSender"] = ContextVar("sender")  # set in the task that sends its pictures


def _is_round_trip(seconds: float | None) -> bool:
    """Whether aiortc could tell it; what a viewer makes up may come out negative."""
    return seconds is not None and seconds >= 0


class InformedSender(RTCRtpSender):
    """Takes the packets of a stream's encoder, tells it what the viewer says, and spreads large pictures."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.link = LinkRate()
        self._packets: PacketQueue | None = None
        self._pacer = Pacer()

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if self._packets is not None:
            hand_on(packet, self._ssrc, self._packets)
        await super()._handle_rtcp_packet(packet)
        if self._packets is not None and isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for stats in (await self.getStats()).values():
                if isinstance(stats, RTCRemoteInboundRtpStreamStats) and _is_round_trip(stats.roundTripTime):
                    self._packets.observer.round_trip(stats.roundTripTime)

    async def _retransmit(self, sequence_number: int) -> None:
        if self.link.may_repeat():
            await super()._retransmit(sequence_number)

    async def _next_encoded_frame(self, codec: RTCRtpCodecParameters) -> Any:
        if isinstance(self.track, EncodedTrack):
            self._packets = self.track.subscribe(codec.name, self.link)
        _sender.set(self)  # not before: the tasks of the stream live longer than this sender
        picture = await super()._next_encoded_frame(codec)
        if picture is not None and self._packets is not None:
            size = sum(len(payload) for payload in picture.payloads)
            packets = self._packets
            self._pacer.begin(
                size, packets.bitrate, packets.period_s, narrow=self.link.narrow, waiting=packets.waiting
            )
        return picture

    async def sent(self, packet_bytes: int) -> None:
        """A packet of a picture has left; returns when the next one may."""
        if self._packets is not None:
            self._packets.observer.bytes_sent(packet_bytes)
            pause_s = self._pacer.sent(packet_bytes)
            if pause_s:
                await asyncio.sleep(pause_s)


_stock_send_rtp: Final = RTCDtlsTransport._send_rtp


async def _send_rtp(self: RTCDtlsTransport, data: bytes) -> None:
    """Send a packet, and let the task that sends pictures wait until the next one may leave."""
    await _stock_send_rtp(self, data)
    sender = _sender.get(None)
    if sender is not None:
        await sender.sent(len(data))


def install_sender() -> None:
    """Make aiortc's connections use this sender. Call before any session."""
    rtcpeerconnection.RTCRtpSender = InformedSender  # type: ignore[attr-defined,assignment]
    rtcrtpsender.RTP_HISTORY_SIZE = _HISTORY_PACKETS  # type: ignore[attr-defined]
    RTCDtlsTransport._send_rtp = _send_rtp  # type: ignore[method-assign]
