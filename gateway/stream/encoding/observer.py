"""Who counts what becomes of a stream's packets."""

from typing import Protocol


class EncodingObserver(Protocol):
    """Is told of every picture, key frame and loss; all calls return at once."""

    def picture_encoded(self, codec: str, seconds: float) -> None: ...

    def key_frame_made(self, reason: str) -> None:
        """One that was asked for; reason: join, pli, fir, overflow, tier, cut."""

    def picture_lost(self) -> None:
        """A viewer says that it cannot go on without a key frame."""

    def packets_lost(self, count: int) -> None:
        """A viewer asks for packets again."""

    def packets_dropped(self, count: int) -> None:
        """A subscriber did not take them in time."""

    def bytes_sent(self, count: int) -> None: ...

    def round_trip(self, seconds: float) -> None:
        """From a report to a viewer until its own, without the time that it kept it."""

    def viewer_closed(self, reason: str) -> None:
        """reason: left, consent, evicted, too_slow, error."""

    def first_picture(self, protocol: str, seconds: float) -> None:
        """A viewer was sent its first packet so long after it had asked for the stream."""


class Unobserved:
    """Nobody counts."""

    def picture_encoded(self, codec: str, seconds: float) -> None: ...

    def key_frame_made(self, reason: str) -> None: ...

    def picture_lost(self) -> None: ...

    def packets_lost(self, count: int) -> None: ...

    def packets_dropped(self, count: int) -> None: ...

    def bytes_sent(self, count: int) -> None: ...

    def round_trip(self, seconds: float) -> None: ...

    def viewer_closed(self, reason: str) -> None: ...

    def first_picture(self, protocol: str, seconds: float) -> None: ...
