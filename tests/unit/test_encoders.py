"""A stream's encoders and their subscriptions: shared, in order, and nobody waits for anybody."""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable

import av
import numpy as np
import pytest

from gateway.config import Bitrate
from gateway.stream.encoding.codecs import VideoEncoder
from gateway.stream.encoding.encoders import Encoders, Encoding
from gateway.stream.encoding.observer import Unobserved
from gateway.stream.encoding.packets import EncodedPicture, PacketQueue
from gateway.stream.encoding.rate import LinkRate
from gateway.stream.pictures.hub import Hub
from tests.server.peer import until

TARGET = Bitrate(5_000_000, 7_000_000, 10_000_000)


class Counting(Unobserved):
    """Counts what encoders tell."""

    def __init__(self) -> None:
        self.encoded = 0
        self.told = asyncio.Event()
        self.key_frames = Counter[str]()
        self.dropped = 0
        self.closed = Counter[str]()

    def picture_encoded(self, codec: str, seconds: float) -> None:
        self.encoded += 1
        self.told.set()

    def key_frame_made(self, reason: str) -> None:
        self.key_frames[reason] += 1

    def packets_dropped(self, count: int) -> None:
        self.dropped += count

    def viewer_closed(self, reason: str) -> None:
        self.closed[reason] += 1


class Show:
    """A stream whose pictures come one by one, and whose clock goes on with them."""

    def __init__(self, *, shared: bool = True, low_tier: bool = True) -> None:
        self.now = 0.0
        self.rate = 30  # pictures per second of its clock
        self.counts = Counting()
        self.hub = Hub(lambda: None)
        encoding = Encoding(TARGET, shared, low_tier, self.counts, lambda: self.now)
        self.wanted = 0
        self.encoders = Encoders(self.hub, encoding, self._count)
        self._number = 0

    def _count(self) -> None:
        self.wanted += 1

    def viewer(self, codec: str = "VP8") -> PacketQueue:
        return self.encoders.subscribe(codec, link=LinkRate(lambda: self.now))

    async def show(self, height: int = 64, width: int = 96) -> None:
        """Show one more picture; returns when all encoders have given their packets away."""
        self.now += 1 / self.rate
        self._number += 1
        before = self.counts.encoded + len(list(self.encoders))
        self.hub.put(np.full((1, height, width, 3), 7 * self._number % 256, np.uint8))
        await self.encoded(before)

    def pause(self) -> None:
        """Show the last picture again and again, in real time."""
        self.now += 1  # long enough for another key frame
        self.hub.paused = True
        self.hub.clear()

    async def encoded(self, count: int) -> None:
        while self.counts.encoded < count and list(self.encoders):
            self.counts.told.clear()
            await self.counts.told.wait()
        await asyncio.sleep(0)  # an encoder hands its packets out after it was counted


def taken(queue: PacketQueue) -> list[av.Packet]:
    """All packets that wait."""
    packets = []
    while queue.waiting:
        coroutine = queue.next()
        try:
            coroutine.send(None)
        except StopIteration as done:
            packets.append(done.value)
    return packets


def stamps(packets: list[av.Packet]) -> list[int]:
    return [packet.pts for packet in packets]


def grow(values: list[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


def sizes(codec: str, packets: list[av.Packet]) -> list[tuple[int, int]]:
    """Width and height of the pictures that a viewer sees who decodes these packets."""
    decoder = av.CodecContext.create({"VP8": "vp8", "H264": "h264"}[codec], "r")
    frames = [frame for packet in (*packets, None) for frame in decoder.decode(packet)]
    return [(frame.width, frame.height) for frame in frames]


async def test_eight_viewers_of_a_codec_share_one_encoder() -> None:
    show = Show()
    viewers = [show.viewer() for _ in range(8)]

    for _ in range(5):
        await show.show()
    given = [taken(viewer) for viewer in viewers]

    assert show.counts.encoded == 5
    assert [len(packets) for packets in given] == [5] * 8
    assert all(a is b for packets in given for a, b in zip(packets, given[0], strict=True))
    assert given[0][0].is_keyframe
    assert show.wanted == 8  # a subscription wants pictures
    await show.encoders.close()


async def test_two_codecs_are_two_encoders_of_the_same_pictures() -> None:
    show = Show()
    viewers = show.viewer("VP8"), show.viewer("H264")

    for _ in range(3):
        await show.show()
    vp8, h264 = map(taken, viewers)

    assert show.counts.encoded == 6
    assert stamps(vp8) == stamps(h264)
    assert sizes("VP8", vp8) == sizes("H264", h264) == [(96, 64)] * 3
    await show.encoders.close()


async def test_a_late_viewer_begins_with_a_key_frame_that_costs_the_others_nothing() -> None:
    show = Show()
    first = show.viewer()
    for _ in range(20):
        await show.show()

    late = show.viewer()
    await show.show()
    begin = taken(late)

    assert [packet.is_keyframe for packet in begin] == [True]
    assert begin == taken(first)[-1:]
    assert show.counts.key_frames == {"join": 2}
    await show.encoders.close()


async def test_a_viewer_that_joins_a_still_stream_sees_the_last_picture() -> None:
    show = Show()
    first = show.viewer()
    await show.show()
    taken(first)
    show.now += 10

    late = show.viewer()
    packet = await asyncio.wait_for(late.next(), 30)

    assert packet is not None
    assert packet.is_keyframe
    await show.encoders.close()


async def test_forty_lost_pictures_in_two_seconds_cost_five_key_frames_at_most() -> None:
    show = Show()
    viewer = show.viewer()

    for _ in range(60):
        viewer.want_key_frame("pli")
        await show.show()
    packets = taken(viewer)

    assert len(packets) == 60
    assert 3 <= sum(packet.is_keyframe for packet in packets) <= 5
    assert show.counts.key_frames.total() <= 5
    await show.encoders.close()


async def test_a_viewer_that_takes_nothing_slows_no_other_and_keeps_little() -> None:
    show = Show(low_tier=False)
    quick, stalled = show.viewer(), show.viewer()

    seen = []
    for _ in range(200):
        await show.show()
        seen += taken(quick)

    assert len(seen) == 200
    assert stalled.waiting <= 60
    assert stalled.packets_dropped == show.counts.dropped > 0
    assert taken(stalled)[0].is_keyframe
    assert grow(stamps(seen))
    await show.encoders.close()


async def test_a_viewer_that_is_too_slow_all_the_time_is_closed_and_no_other() -> None:
    show = Show(low_tier=False)
    quick, stalled = show.viewer(), show.viewer()

    while not stalled.failure:
        assert show.now < 60
        await show.show()
        taken(quick)
    taken(stalled)

    assert await stalled.next() is None
    assert "too slowly" in (stalled.failure or "")
    assert show.counts.closed == {"too_slow": 1}
    await show.show()
    assert len(taken(quick)) == 1
    await show.encoders.close()


async def seconds(
    show: Show, count: float, *viewers: PacketQueue, each: Callable[[], None]
) -> list[av.Packet]:
    """Show some seconds, in which all viewers take their packets; `each` is called after each picture.

    Returns the packets of the first viewer.
    """
    packets = []
    show.rate = 10
    for _ in range(round(show.rate * count)):
        await show.show(128, 192)
        given = [taken(viewer) for viewer in viewers]
        packets += given[0]
        each()
    return packets


async def test_a_viewer_whose_network_is_narrow_gets_small_pictures_and_later_large_ones_again() -> None:
    show = Show()
    slow, wide = show.viewer(), show.viewer()

    before = await seconds(show, 7, slow, wide, each=lambda: slow.reported(1_000))
    small = slow.tier
    after = await seconds(show, 65, slow, wide, each=lambda: slow.reported(10_000_000))
    seen = before + after

    assert small == "low"
    assert grow(stamps(seen))
    shown = [size for size, _ in itertools.groupby(sizes("VP8", seen))]
    assert shown == [(192, 128), (96, 64), (192, 128)]
    assert (slow.tier, wide.tier) == ("full", "full")
    assert [(each.codec, each.tier) for each in show.encoders] == [("VP8", "full")]
    await show.encoders.close()


class Tier:
    """An encoder whose packets come when a test wants."""

    fps = 30.0
    bitrate = 1_000_000

    def __init__(self, tier: str) -> None:
        self.tier = tier
        self.asked = 0

    def want_key_frame(self, reason: str) -> None:
        self.asked += 1

    def leave(self, queue: PacketQueue) -> None: ...

    def gives(self, queue: PacketQueue, pts: int, *, key_frame: bool = False) -> None:
        packet = av.Packet(4)
        packet.pts, packet.is_keyframe = pts, key_frame
        queue.offer(EncodedPicture(packet, pts, (96, 64), repeated=False), self)


async def test_a_tier_whose_pictures_take_longer_takes_over_with_its_first_key_frame() -> None:
    queue = PacketQueue("VP8", None, Counting(), lambda queue: None)
    low, full = Tier("low"), Tier("full")
    queue.attach(low, "join")
    low.gives(queue, 1, key_frame=True)
    queue.attach(full, "tier")

    low.gives(queue, 2)
    queue.key_frame_begins(3, full)
    low.gives(queue, 3)
    low.gives(queue, 4)
    full.gives(queue, 3, key_frame=True)
    low.gives(queue, 5)
    full.gives(queue, 4)

    assert stamps(taken(queue)) == [1, 2, 3, 4]
    assert queue.tier == "full"
    assert full.asked == 1


async def test_loss_moves_a_viewer_to_the_low_tier_too() -> None:
    show = Show()
    slow, wide = show.viewer(), show.viewer()

    await seconds(show, 6, slow, wide, each=lambda: slow.lost(0.2))

    assert (slow.tier, wide.tier) == ("low", "full")
    await show.encoders.close()


async def test_a_viewer_that_is_alone_is_never_moved_and_its_network_steers_the_bitrate() -> None:
    show = Show()
    only = show.viewer("H264")

    await seconds(show, 7, only, each=lambda: only.lost(0.2))
    alone = only.bitrate
    other = show.viewer("H264")
    await seconds(show, 1, other, only, each=lambda: None)
    together = only.bitrate

    assert only.tier == "full"
    assert alone < together == 500_000  # the floor for so small a picture
    await show.encoders.close()


async def test_the_last_one_in_the_low_tier_goes_back_when_it_is_alone() -> None:
    show = Show()
    slow, wide = show.viewer(), show.viewer()
    await seconds(show, 6, slow, wide, each=lambda: slow.lost(0.2))

    wide.close()
    for _ in range(30):  # with the first key frame that is younger than what it was sent
        await seconds(show, 1, slow, each=lambda: slow.lost(0.2))
        if len(list(show.encoders)) == 1:
            break

    assert [each.tier for each in show.encoders] == ["full"]
    await show.encoders.close()


@pytest.mark.parametrize("shared", [True, False])
async def test_without_the_low_tier_or_shared_encoders_nobody_is_moved(shared: bool) -> None:
    show = Show(shared=shared, low_tier=False)
    slow, wide = show.viewer(), show.viewer()

    await seconds(show, 6, slow, wide, each=lambda: slow.lost(0.2))

    assert [each.tier for each in show.encoders] == ["full"] * (1 if shared else 2)
    await show.encoders.close()


async def test_stamps_grow_through_pauses_and_changes_of_size() -> None:
    show = Show()
    early = show.viewer()
    seen = []
    for height in (64, 64, 32):
        await show.show(height)
    show.pause()
    seen += [await early.next() for _ in range(6)]  # three of them are repeated
    late = show.viewer()
    begin = await late.next()
    show.hub.paused = False
    for _ in range(2):  # the first one may be taken for one of the pause
        await show.show(96)
    seen += taken(early)
    rest = [begin, *taken(late)]

    assert grow(stamps(seen))
    assert grow(stamps(rest))
    assert [size for size, _ in itertools.groupby(sizes("VP8", seen))] == [(96, 64), (96, 32), (96, 96)]
    assert sizes("VP8", rest)[-1] == (96, 96)
    await show.encoders.close()


async def test_a_recorder_leaves_out_pauses_and_goes_on_with_a_key_frame() -> None:
    show = Show()
    viewer, recorder = show.viewer("H264"), show.encoders.subscribe("H264", repeats=False)
    for _ in range(3):
        await show.show()
    before = taken(recorder)
    taken(viewer)

    show.pause()
    repeated = [await viewer.next() for _ in range(3)]
    during = taken(recorder)
    show.hub.paused = False
    show.now += 1
    await show.show()
    await show.show()
    after = taken(recorder)

    assert (len(before), len(repeated), len(during)) == (3, 3, 0)
    assert after[0].is_keyframe
    assert show.counts.key_frames["cut"] == 1
    assert sizes("H264", before + after) == [(96, 64)] * (3 + len(after))
    await show.encoders.close()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each of the next pictures fails; none does when it is empty."""
    failures: list[bool] = []
    stock = VideoEncoder.encode

    def encode(self: VideoEncoder, *arguments: object, **more: object) -> object:
        if failures and failures.pop(0):
            raise RuntimeError("out of order")
        return stock(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(VideoEncoder, "encode", encode)
    return failures


async def test_an_encoder_that_fails_is_made_anew_once_and_costs_one_picture(failing: list[bool]) -> None:
    show = Show()
    viewer = show.viewer()
    await show.show()
    failing.append(True)

    show.hub.put(np.zeros((1, 64, 96, 3), np.uint8))
    await until(lambda: not failing, 30, "the failure")
    await show.show()
    packets = taken(viewer)

    assert [packet.is_keyframe for packet in packets] == [True, True]
    assert viewer.failure is None
    await show.encoders.close()


async def test_an_encoder_that_fails_again_closes_its_viewers_and_no_others(
    failing: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    show = Show()
    viewers = [show.viewer() for _ in range(3)]
    await show.show()
    failing += [True, True]
    show.hub.put(np.zeros((2, 64, 96, 3), np.uint8))
    caplog.set_level(logging.WARNING)

    for viewer in viewers:
        taken(viewer)
    ends = [await asyncio.wait_for(viewer.next(), 30) for viewer in viewers]
    other = show.viewer()
    await show.show()

    assert ends == [None] * 3
    assert all("could not be encoded" in (viewer.failure or "") for viewer in viewers)
    assert show.counts.closed == {"error": 3}
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert taken(other)
    await show.encoders.close()


async def test_a_picture_that_is_too_small_ends_the_subscription_and_says_why() -> None:
    show = Show()
    viewer = show.viewer()

    show.hub.put(np.zeros((1, 1, 64, 3), np.uint8))
    end = await asyncio.wait_for(viewer.next(), 30)

    assert end is None
    assert "64x1 pixels cannot be sent" in (viewer.failure or "")
    assert list(show.encoders) == []


async def test_an_encoder_ends_with_its_last_subscriber_and_with_the_stream() -> None:
    show = Show()
    first, second = show.viewer(), show.viewer()
    third = show.viewer("H264")

    first.close()
    with_two = len(list(show.encoders))
    second.close()
    with_one = len(list(show.encoders))
    show.hub.close()
    end = await asyncio.wait_for(third.next(), 30)

    assert (with_two, with_one, end) == (2, 1, None)
    assert await show.viewer().next() is None
    assert list(show.encoders) == []
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("encoder-")]
    await asyncio.wait_for(asyncio.gather(*tasks), 30)


async def test_an_unknown_codec_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="AV1; choose one of VP8, H264"):
        Show().encoders.subscribe("AV1")
