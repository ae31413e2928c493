"""The packets of one subscriber of a stream: in order, few, from one key frame on."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.stream.encoding.codecs import VideoPacket
from gateway.stream.encoding.health import Health
from gateway.stream.encoding.observer import EncodingObserver
from gateway.stream.encoding.rate import LinkRate
from gateway.stream.pictures.picture import CLOCK_RATE

_MAX_PACKETS: Final = 60
_MAX_TICKS: Final = CLOCK_RATE  # of the oldest packet to the newest: one second
_TOO_MANY_WAITS: Final = 10  # for a key frame after an overflow
_WAITS_COUNTED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """One packet and what is known of it. pts: in 1/90000 s. size: width and height in pixels."""

    packet: VideoPacket
    pts: int
    size: tuple[int, int]
    repeated: bool  # it shows nothing new


class PacketSource(Protocol):
    """An encoder, as its subscribers see it."""

    tier: str
    bitrate: int  # bit/s that it was told to keep to

    @property
    def fps(self) -> float: ...

    def want_key_frame(self, reason: str) -> None: ...

    def leave(self, queue: "PacketQueue") -> None: ...


class PacketQueue:
    """A subscription: packets of one codec, with strictly increasing timestamps in 1/90000 s.

    It begins with a key frame. Who takes too few of them loses all that wait, and is given the next key
    frame; no other subscriber notices. Sizes, bitrates and tiers may change from one key frame to the next.
    """

    def __init__(
        self,
        codec: str,
        link: LinkRate | None,
        observer: EncodingObserver,
        on_change: Callable[["PacketQueue"], None],
        *,
        repeats: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """link: the network to a viewer; None: a recorder. on_change: it may belong to another tier now.

        repeats: whether pictures are wanted that were shown before, as in a pause.
        """
        self.codec = codec
        self.link = link
        self.health = Health(clock)
        self.failure: str | None = None  # why no more packets come, for the user
        self.size: tuple[int, int] | None = None  # width and height of the packet that was taken last
        self.closed = False
        self.packets_taken = 0
        self.packets_dropped = 0
        self.observer = observer
        self._on_change = on_change
        self._clock = clock
        self._repeats = repeats
        self._source: PacketSource | None = None
        self._coming: PacketSource | None = None  # takes over with its first key frame
        self._comes_at: int | None = None  # timestamp of that key frame, once it is being made
        self._pictures: deque[EncodedPicture] = deque()
        self._arrived = asyncio.Event()
        self._ended = False  # no more will be added
        self._waits = True  # for a key frame
        self._skips = False  # since pictures that were shown before were left out
        self._last_pts = -1
        self._overflows: deque[float] = deque(maxlen=_TOO_MANY_WAITS)

    @property
    def waiting(self) -> int:
        """Number of packets that were not taken yet."""
        return len(self._pictures)

    @property
    def tier(self) -> str:
        """What it is given, or will be with the next key frame."""
        source = self._coming or self._source
        return source.tier if source else ""

    @property
    def bitrate(self) -> int:
        """Bit/s of the encoder."""
        return self._source.bitrate if self._source else 0

    @property
    def period_s(self) -> float:
        """Seconds from one picture to the next."""
        return 1 / self._source.fps if self._source else 0.0

    @property
    def has_gap(self) -> bool:
        """Whether it left out pictures that were shown before: the next one has to stand alone."""
        return self._skips

    @property
    def info(self) -> Mapping[str, Any]:
        """What a stream tells of it: sizes in pixels, None before the first packet."""
        width, height = self.size or (None, None)
        return {
            "codec": self.codec,
            "tier": self.tier,
            "width": width,
            "height": height,
            "frames": self.packets_taken,
            "dropped": self.packets_dropped,
        }

    def attach(self, source: PacketSource, reason: str) -> None:
        """Take packets of `source` from its next key frame on; until then those of the one before."""
        if self._coming is not None:
            self._coming.leave(self)
        self._comes_at = None
        if self._source is None or self._source is source:
            self._source, self._coming = source, None
        else:
            self._coming = source
        source.want_key_frame(reason)

    def key_frame_begins(self, pts: int, source: PacketSource) -> None:
        """`source` makes a key frame of the picture at `pts`; if it takes over with it, nothing of the one
        before is taken from there on. Large pictures take longer than small ones: without this the small one
        would be there first each time, and the key frame always too late.
        """
        if source is self._coming and self._comes_at is None and pts > self._last_pts:
            self._comes_at = pts

    async def next(self) -> VideoPacket | None:
        """The next packet; shared with other subscribers, so only to be read. None: no more."""
        picture = await self.next_picture()
        return None if picture is None else picture.packet

    async def next_picture(self) -> EncodedPicture | None:
        """The next packet with what is known of it. None: no more."""
        while not self._pictures:
            if self.closed or self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        picture = self._pictures.popleft()
        self.size = picture.size
        self.packets_taken += 1
        if self.link is not None:
            self.link.sent(picture.packet.size)
        return picture

    def want_key_frame(self, reason: str) -> None:
        """Ask for a key frame; it comes soon, and together with those that others ask for."""
        source = self._coming or self._source
        if source is not None and not self.closed:
            source.want_key_frame(reason)

    def reported(self, estimate: int) -> None:
        """The viewer estimates that its network carries so many bit/s."""
        if self.link is not None:
            self.link.report(estimate)
            self.health.reported(estimate, min(self.bitrate, self.link.sent_rate))
            self._on_change(self)

    def lost(self, share: float) -> None:
        """The viewer missed this share of the packets since its last report."""
        if self.link is not None:
            self.link.lost(share)
            self.health.lost(share)
            self._on_change(self)

    def offer(self, picture: EncodedPicture, source: PacketSource) -> None:
        """Take a packet of `source`, if it is of use. Returns at once."""
        if self.closed or not self._is_next(picture, source):
            return
        oldest = self._pictures[0].pts if self._pictures else picture.pts
        if len(self._pictures) >= _MAX_PACKETS or picture.pts - oldest > _MAX_TICKS:
            self._overflow()
            return
        self._last_pts = picture.pts
        self._pictures.append(picture)
        self._arrived.set()

    def _is_next(self, picture: EncodedPicture, source: PacketSource) -> bool:
        begins = picture.packet.is_keyframe and picture.pts > self._last_pts
        if source is self._coming and begins:
            assert self._source is not None
            self._source.leave(self)
            self._source, self._coming, self._comes_at = source, None, None
            self._waits = False
        elif source is self._coming:
            source.want_key_frame("tier")  # it was older than what the one before had sent already
            return False
        elif source is not self._source or (self._comes_at is not None and picture.pts >= self._comes_at):
            return False
        if picture.repeated and not self._repeats and self._last_pts >= 0:
            self._waits = self._skips = True  # the next ones build on this picture
            return False
        self._waits = self._waits and not begins
        self._skips = self._skips and self._waits
        return not self._waits and picture.pts > self._last_pts

    def _overflow(self) -> None:
        self._drop()
        self._waits = True
        now = self._clock()
        self._overflows.append(now)
        if len(self._overflows) == _TOO_MANY_WAITS and now - self._overflows[0] < _WAITS_COUNTED_S:
            self.observer.viewer_closed("too_slow")
            self.end("Pictures are taken too slowly: the connection cannot keep up with the stream.")
            return
        self.want_key_frame("overflow")
        self.health.overflowed()
        self._on_change(self)

    def _drop(self) -> None:
        self.packets_dropped += len(self._pictures)
        self.observer.packets_dropped(len(self._pictures))
        self._pictures.clear()

    def end(self, failure: str | None = None) -> None:
        """Nothing will be added; what waits can still be taken. Idempotent."""
        if not self._ended:
            self._ended = True
            self.failure = failure
            self._detach()
        self._arrived.set()

    def close(self) -> None:
        """Want no more packets. Idempotent."""
        self.closed = True
        self._pictures.clear()
        self.end()

    def _detach(self) -> None:
        for source in (self._source, self._coming):
            if source is not None:
                source.leave(self)
