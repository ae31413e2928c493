"""Encoders of one stream: one per codec and tier, for all who subscribe, as long as somebody does."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from av.video.reformatter import VideoReformatter

from gateway.config import Bitrate
from gateway.stream.encoding.codecs import CODECS, VideoEncoder, VideoPacket
from gateway.stream.encoding.observer import EncodingObserver, Unobserved
from gateway.stream.encoding.packets import EncodedPicture, PacketQueue
from gateway.stream.encoding.rate import LinkRate, RateLimits
from gateway.stream.pictures.hub import Hub
from gateway.stream.pictures.picture import Picture, PictureTooSmall
from gateway.threads import in_encoder_thread
from gateway.waiting import end

logger = logging.getLogger(__name__)

FULL: Final = "full"
LOW: Final = "low"  # half as wide and high, a quarter of the bitrate
TIERS: Final = {FULL: 1, LOW: 4}  # a tier's bitrate: one part in so many of the full one
_KEY_FRAME_EVERY_S: Final = 0.5  # at most, of those that are asked for
_STILL_S: Final = (
    0.25  # without a new picture, then the last one is shown again for who waits for a key frame
)
_REBUILT_ONCE_IN_S: Final = 60.0
_FAILURE: Final = "The video could not be encoded, see the server's log"


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pictures are encoded, and who counts them.

    shared: one encoder for all subscribers of a codec; False: one for each. low_tier: whether viewers that
    are too slow for the others are sent smaller pictures.
    """

    bitrate: Bitrate = field(default_factory=Bitrate)
    shared: bool = True
    low_tier: bool = True
    observer: EncodingObserver = field(default_factory=Unobserved)
    clock: Callable[[], float] = time.monotonic


class SharedEncoder:
    """Encodes a stream's pictures once, and hands the packets to all its subscribers.

    With one subscriber it keeps to what this one's network carries, with several to the configured default.
    """

    def __init__(
        self, hub: Hub, codec: str, tier: str, encoding: Encoding, on_idle: Callable[["SharedEncoder"], None]
    ) -> None:
        self.codec = codec
        self.tier = tier
        self.bitrate = 0
        self._hub = hub
        self._sink = hub.join()
        self._observer = encoding.observer
        self._clock = encoding.clock
        self._on_idle = on_idle
        share = TIERS[tier]
        whole = encoding.bitrate
        self._limits = RateLimits(
            Bitrate(whole.minimum // share, whole.default // share, whole.maximum // share)
        )
        self._halves = tier == LOW
        self._reformatter = VideoReformatter()
        self._encoder = VideoEncoder(codec)
        self._subscribers: list[PacketQueue] = []
        self._wanted: str | None = None  # why a key frame is to be made
        self._key_frame_at = float("-inf")
        self._rebuilt_at = float("-inf")
        self._encoded_at = float("-inf")
        self._task = asyncio.create_task(self._run(), name=f"encoder-{codec}-{tier}")

    def __iter__(self) -> Iterator[PacketQueue]:
        """Its subscribers."""
        return iter(list(self._subscribers))

    @property
    def fps(self) -> float:
        return self._hub.fps

    def add(self, queue: PacketQueue, reason: str) -> None:
        """Give `queue` packets, from the next key frame on."""
        if queue not in self._subscribers:
            self._subscribers.append(queue)
        queue.attach(self, reason)

    def leave(self, queue: PacketQueue) -> None:
        """Give `queue` no more packets. Without subscribers the encoder ends."""
        if queue in self._subscribers:
            self._subscribers.remove(queue)
            if not self._subscribers:
                self._stop()

    def want_key_frame(self, reason: str) -> None:
        """Make a key frame soon; requests that come before it are served together."""
        if self._wanted is None:
            self._wanted = reason
            asyncio.get_running_loop().call_later(_STILL_S, self._end_stillness)

    def _end_stillness(self) -> None:
        """See to it that there is a picture of which the wanted key frame can be made."""
        if self._wanted is None or self._sink.closed:
            return
        if self._clock() - self._encoded_at >= _STILL_S:
            self._hub.repeat()
        asyncio.get_running_loop().call_later(_STILL_S, self._end_stillness)

    async def close(self) -> None:
        """End all subscriptions and the encoder."""
        self._end(None)
        await end(self._task)

    async def _run(self) -> None:
        try:
            while (picture := await self._sink.next_picture()) is not None:
                await self._encode(picture)
            self._end(None)
        except Exception:  # task boundary
            logger.exception("The %s encoder ended", self.codec)
            self._end(_FAILURE)

    async def _encode(self, picture: Picture) -> None:
        started = self._clock()
        bitrate, narrow = self._target(picture)
        forced = self._is_key_frame_due(picture)
        if forced is not None:
            for queue in self:
                queue.key_frame_begins(picture.pts, self)
        try:
            packets, size = await in_encoder_thread(self._work, picture, bitrate, forced is not None, narrow)
        except PictureTooSmall as error:
            self._end(str(error))
            return
        except Exception as error:  # task boundary: one costs a key frame, the next one the subscribers
            self._failed(error)
            return
        self.bitrate = bitrate
        self._encoded_at = self._clock()
        if any(packet.is_keyframe for packet in packets):
            self._key_frame_at, self._wanted = started, None
            if forced is not None:
                self._observer.key_frame_made(forced)
        self._observer.picture_encoded(self.codec, self._encoded_at - started)
        for packet in packets:
            for queue in self:
                queue.offer(EncodedPicture(packet, picture.pts, size, picture.repeated), self)

    def _work(
        self, picture: Picture, bitrate: int, key_frame: bool, narrow: bool
    ) -> tuple[list[VideoPacket], tuple[int, int]]:
        """In a thread: the packets of a picture, and its size."""
        frame = picture.frame()
        if self._halves:
            half = {"width": max(2, frame.width // 2 & ~1), "height": max(2, frame.height // 2 & ~1)}
            smaller = self._reformatter.reformat(frame, **half, format="yuv420p", threads=1)
            smaller.pts, smaller.time_base = frame.pts, frame.time_base
            frame = smaller
        packets = self._encoder.encode(frame, bitrate, key_frame=key_frame, narrow=narrow)
        return packets, (frame.width, frame.height)

    def _target(self, picture: Picture) -> tuple[int, bool]:
        """Bit/s for a picture of that size, and whether the network carries less than the floor."""
        height, width = picture.image.shape[:2]
        link = self._steering
        if link is None:
            return self._limits.default(width, height), False
        wanted = link.wanted(self._limits, width, height)
        return wanted, link.narrow

    @property
    def _steering(self) -> LinkRate | None:
        return self._subscribers[0].link if len(self._subscribers) == 1 else None

    def _is_key_frame_due(self, picture: Picture) -> str | None:
        """Why this picture is to be a key frame; None: it need not be one."""
        if self._wanted is None and not picture.repeated and any(queue.has_gap for queue in self):
            self._wanted = "cut"
        if self._wanted is None or self._clock() - self._key_frame_at < _KEY_FRAME_EVERY_S:
            return None
        link = self._steering
        return self._wanted if link is None or link.may_send_key_frame() else None

    def _failed(self, error: Exception) -> None:
        now = self._clock()
        if now - self._rebuilt_at < _REBUILT_ONCE_IN_S:
            text = "The %s encoder failed again: its %d viewers are closed"
            logger.error(text, self.codec, len(self._subscribers), exc_info=error)
            for queue in self:
                if queue.link is not None:
                    self._observer.viewer_closed("error")
            self._end(_FAILURE)
            return
        logger.warning("The %s encoder failed, another one takes its place", self.codec, exc_info=error)
        self._rebuilt_at = now
        self._encoder = VideoEncoder(self.codec)

    def _end(self, failure: str | None) -> None:
        """End all subscriptions, and with them this encoder."""
        for queue in self:
            queue.end(failure)
        self._stop()

    def _stop(self) -> None:
        if self._sink.closed:
            return
        self._sink.close()  # the task sees it when its picture is done
        self._on_idle(self)


class Encoders:
    """What a stream's viewers and recorders are sent: subscriptions to packets of a codec."""

    def __init__(self, hub: Hub, encoding: Encoding, on_demand: Callable[[], None]) -> None:
        """on_demand: somebody wants pictures."""
        self._hub = hub
        self._encoding = encoding
        self._on_demand = on_demand
        self._encoders: list[SharedEncoder] = []

    def __iter__(self) -> Iterator[SharedEncoder]:
        return iter(list(self._encoders))

    @property
    def observer(self) -> EncodingObserver:
        return self._encoding.observer

    def subscribe(
        self, codec: str, tier: str = FULL, *, link: LinkRate | None = None, repeats: bool = True
    ) -> PacketQueue:
        """Packets of `codec` (VP8 or H264) from the next key frame on. Whoever subscribes wants pictures.

        link: the network to a viewer, whose reports steer the bitrate while nobody else subscribes, and move
        this viewer to the low tier when it is too slow for all. repeats: see `PacketQueue`.
        """
        if codec not in CODECS:
            raise ValueError(f"There is no encoder for {codec}; choose one of {', '.join(CODECS)}")
        queue = PacketQueue(
            codec, link, self.observer, self._settle, repeats=repeats, clock=self._encoding.clock
        )
        if self._hub.closed:
            queue.end()
            return queue
        self._encoder(codec, tier).add(queue, "join")
        self._on_demand()
        return queue

    async def close(self) -> None:
        """End all subscriptions."""
        await asyncio.gather(*(encoder.close() for encoder in self))

    def _encoder(self, codec: str, tier: str) -> SharedEncoder:
        for encoder in self._encoders:
            if self._encoding.shared and (encoder.codec, encoder.tier) == (codec, tier):
                return encoder
        encoder = SharedEncoder(self._hub, codec, tier, self._encoding, self._encoders.remove)
        self._encoders.append(encoder)
        return encoder

    def _settle(self, queue: PacketQueue) -> None:
        """Move a viewer to the tier that suits it."""
        if not (self._encoding.shared and self._encoding.low_tier) or queue.link is None:
            return
        others = any(each is not queue for encoder in self for each in encoder if each.codec == queue.codec)
        if queue.tier == FULL and others and queue.health.is_slow:
            queue.health.lowered()
            self._encoder(queue.codec, LOW).add(queue, "tier")
        elif queue.tier == LOW and (not others or queue.health.may_be_raised):
            queue.health.raised()  # alone, its own network steers the bitrate
            self._encoder(queue.codec, FULL).add(queue, "tier")
