"""When a received picture is handed to the decoder."""

import random

from aiortc.rtp import RtpPacket

from gateway.webrtc.aiortc_patches.jitter_buffer import PromptJitterBuffer


def packet(number: int, timestamp: int, data: bytes, *, marker: bool = False) -> RtpPacket:
    made = RtpPacket(sequence_number=number & 0xFFFF, timestamp=timestamp, marker=int(marker), payload=data)
    made._data = data
    return made


def pictures(count: int, packets_each: int, first: int = 0) -> list[RtpPacket]:
    """Pictures b"0:0 0:1 ", b"1:0 1:1 ", ... as packets in order."""
    return [
        packet(first + p * packets_each + i, p * 3000, f"{p}:{i} ".encode(), marker=i == packets_each - 1)
        for p in range(count)
        for i in range(packets_each)
    ]


def received(packets: list[RtpPacket], **options: bool) -> list[bytes]:
    buffer = PromptJitterBuffer(capacity=128, is_video=options.get("is_video", True))
    frames = [buffer.add(p)[1] for p in packets]
    return [f.data for f in frames if f is not None]


def test_a_picture_is_handed_out_with_its_last_packet() -> None:
    buffer = PromptJitterBuffer(capacity=128, is_video=True)

    handed_out = [buffer.add(p)[1] is not None for p in pictures(2, 3)]

    assert handed_out == [False, False, True, False, False, True]


def test_packets_in_the_wrong_order_give_the_same_picture() -> None:
    first, second, third = pictures(1, 3)

    assert received([first, third, second]) == [b"0:0 0:1 0:2 "]


def test_a_picture_waits_for_a_missing_packet_and_later_ones_stay_in_order() -> None:
    sent = pictures(4, 3)
    late = sent.pop(1)
    sent.insert(7, late)

    assert received(sent) == [b"0:0 0:1 0:2 ", b"1:0 1:1 1:2 ", b"2:0 2:1 2:2 ", b"3:0 3:1 3:2 "]


def test_a_lost_marker_ends_the_picture_at_the_next_one() -> None:
    sent = pictures(2, 2)
    sent[1].marker = 0

    assert received(sent) == [b"0:0 0:1 ", b"1:0 1:1 "]


def test_padding_between_pictures_is_skipped() -> None:
    sent = [
        packet(0, 0, b"a", marker=True),
        packet(1, 0, b""),
        packet(2, 0, b""),
        packet(3, 3000, b"b", marker=True),
        packet(4, 6000, b"c", marker=True),
    ]

    assert received(sent) == [b"a", b"b", b"c"]


def test_sequence_numbers_wrap_around() -> None:
    assert len(received(pictures(5, 3, first=65530))) == 5


def test_shuffled_neighbours_lose_nothing() -> None:
    rng = random.Random(3)
    sent = pictures(50, 4)
    for i in range(1, len(sent) - 2, 3):
        if rng.random() < 0.5:
            sent[i], sent[i + 1] = sent[i + 1], sent[i]

    complete = received([*sent, *pictures(54, 4)[200:]])

    assert complete[:50] == [b"".join(f"{p}:{i} ".encode() for i in range(4)) for p in range(50)]


def test_audio_is_buffered_as_before() -> None:
    buffer = PromptJitterBuffer(capacity=16, prefetch=4, is_video=False)

    handed_out = [buffer.add(p)[1] is not None for p in pictures(5, 1)]

    assert handed_out == [False, False, False, False, True]
