"""aiortc's RTP sender, which knows its network: for its encoder, and to not flood it with lost packets.

A full network loses packets, the viewer asks for each of them again every few milliseconds, and aiortc sends
them all: at 500 kbit/s no picture came through for ten seconds after the encoder had slowed down.
"""

from contextvars import ContextVar
from typing import Any

from aiortc import RTCRtpSender, rtcpeerconnection
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import AnyRtcpPacket, RtcpRrPacket, RtcpSrPacket

from gateway.webrtc.aiortc_patches.members import require_members
from gateway.webrtc.rate import LinkRate

require_members(rtcpeerconnection, "RTCRtpSender")
require_members(RTCRtpSender, "_handle_rtcp_packet", "_next_encoded_frame", "_retransmit", "_send_keyframe")

_link: ContextVar[LinkRate] = ContextVar("link")


class InformedSender(RTCRtpSender):
    """Knows its link, and hands it to the encoder that is made in its task."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.link = LinkRate()
        self._owes_key_frame = False

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == self._ssrc:
                    self.link.lost(report.fraction_lost / 256)
        await super()._handle_rtcp_packet(packet)

    async def _retransmit(self, sequence_number: int) -> None:
        if self.link.may_repeat():
            await super()._retransmit(sequence_number)

    def _send_keyframe(self) -> None:
        """Some viewers ask for each lost packet anew, and each of these pictures loses packets again."""
        self._owes_key_frame = True

    async def _next_encoded_frame(self, codec: RTCRtpCodecParameters) -> Any:
        _link.set(self.link)
        if self._owes_key_frame and self.link.may_send_key_frame():
            self._owes_key_frame = False
            super()._send_keyframe()
        return await super()._next_encoded_frame(codec)


def current_link() -> LinkRate:
    """The link of the sender in whose task this is called; one of which nothing is known elsewhere."""
    return _link.get(None) or LinkRate()


def install_sender() -> None:
    """Make aiortc's connections use this sender. Call before any session."""
    rtcpeerconnection.RTCRtpSender = InformedSender  # type: ignore[attr-defined,assignment]
