"""What a viewer's RTCP packets tell, handed to its subscription: losses, estimates, wishes for key frames."""

from aiortc import rtcrtpsender
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    unpack_remb_fci,
)

from gateway.stream.encoding.packets import PacketQueue
from gateway.webrtc.aiortc_patches.members import require_members

require_members(rtcrtpsender.RTCRtpSender, "_handle_rtcp_packet")

_REASONS = {RTCP_PSFB_PLI: "pli", RTCP_PSFB_FIR: "fir"}


def hand_on(packet: AnyRtcpPacket, source: int, packets: PacketQueue) -> None:
    """Tell a subscription what a viewer said. source: SSRC of what it is sent."""
    if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
        for report in packet.reports:
            if report.ssrc == source:
                packets.lost(report.fraction_lost / 256)
    elif isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
        packets.observer.packets_lost(len(packet.lost))
    elif isinstance(packet, RtcpPsfbPacket) and packet.fmt in _REASONS:
        packets.observer.picture_lost()
        packets.want_key_frame(_REASONS[packet.fmt])
    elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
        _estimated(packet.fci, source, packets)


def _estimated(fci: bytes, source: int, packets: PacketQueue) -> None:
    try:
        bitrate, sources = unpack_remb_fci(fci)
    except ValueError:  # another application's message
        return
    if source in sources:
        packets.reported(bitrate)
