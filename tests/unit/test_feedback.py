"""What a viewer's RTCP packets do to its subscription, and how long its packets can be asked for again."""

import struct

import pytest
from aiortc import rtcrtpsender
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpPacket,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    pack_remb_fci,
)

from gateway.stream.encoding.observer import Unobserved
from gateway.stream.encoding.packets import PacketQueue
from gateway.stream.encoding.rate import LinkRate
from gateway.webrtc.aiortc_patches.feedback import hand_on
from gateway.webrtc.aiortc_patches.sender import install_sender

OURS, OTHER = 1234, 99


class Counting(Unobserved):
    def __init__(self) -> None:
        self.told: list[object] = []

    def picture_lost(self) -> None:
        self.told.append("picture")

    def packets_lost(self, count: int) -> None:
        self.told.append(count)


class Asked:
    """An encoder that is asked for key frames."""

    tier = "full"
    bitrate = 1_000_000
    fps = 30.0

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def want_key_frame(self, reason: str) -> None:
        self.reasons.append(reason)

    def leave(self, queue: PacketQueue) -> None: ...


def told(packet: AnyRtcpPacket) -> tuple[list[object], list[str], LinkRate]:
    """What a packet that was sent over a network tells: the counters, the encoder, the network's rate."""
    counts, encoder, link = Counting(), Asked(), LinkRate()
    queue = PacketQueue("VP8", link, counts, lambda queue: None)
    queue.attach(encoder, "join")
    link.sent(1_000_000)
    hand_on(RtcpPacket.parse(bytes(packet))[0], OURS, queue)
    return counts.told, encoder.reasons, link


def receiver_report(source: int, share: float) -> RtcpRrPacket:
    lost = round(256 * share)
    info = RtcpReceiverInfo(
        ssrc=source, fraction_lost=lost, packets_lost=1, highest_sequence=1, jitter=0, lsr=0, dlsr=0
    )
    return RtcpRrPacket(ssrc=OTHER, reports=[info])


@pytest.mark.parametrize(("kind", "reason"), [(RTCP_PSFB_PLI, "pli"), (RTCP_PSFB_FIR, "fir")])
def test_a_lost_picture_is_counted_and_asks_for_a_key_frame(kind: int, reason: str) -> None:
    fci = struct.pack("!LBBH", OURS, 1, 0, 0) if kind == RTCP_PSFB_FIR else b""

    counts, reasons, _ = told(RtcpPsfbPacket(fmt=kind, ssrc=OTHER, media_ssrc=OURS, fci=fci))

    assert (counts, reasons) == (["picture"], ["join", reason])


def test_lost_packets_are_counted() -> None:
    counts, reasons, _ = told(
        RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=OTHER, media_ssrc=OURS, lost=[7, 8, 9])
    )

    assert (counts, reasons) == ([3], ["join"])


@pytest.mark.parametrize(("source", "estimate"), [(OURS, 750_000), (OTHER, None)])
def test_an_estimate_counts_when_it_is_ours(source: int, estimate: int | None) -> None:
    fci = pack_remb_fci(750_000, [source])

    *_, link = told(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=OTHER, media_ssrc=0, fci=fci))

    assert link.estimate == estimate


@pytest.mark.parametrize("fci", [b"", b"REMB", b"XXXX" + bytes(12)])
def test_another_applications_message_is_ignored(fci: bytes) -> None:
    *_, link = told(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=OTHER, media_ssrc=0, fci=fci))

    assert link.estimate is None


@pytest.mark.parametrize(("source", "narrow"), [(OURS, True), (OTHER, False)])
def test_a_report_of_loss_counts_when_it_is_about_us(source: int, narrow: bool) -> None:
    *_, link = told(receiver_report(source, 0.5))

    assert link.narrow is narrow


def test_a_second_of_packets_can_be_sent_again() -> None:
    install_sender()

    assert rtcrtpsender.RTP_HISTORY_SIZE * 1200 * 8 > 7_000_000
