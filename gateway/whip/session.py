"""What WHIP and WHEP have in common: one connection, made by a request, changed and ended by its own URL."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

from aiortc import RTCConfiguration, RTCRtpTransceiver

from gateway.access.post_rate import Allowance
from gateway.errors import ApiError
from gateway.waiting import within
from gateway.webrtc.candidates import MAX_CANDIDATES
from gateway.webrtc.connection import Connection
from gateway.webrtc.signalling import Offer
from gateway.whip.fragments import read_fragment

GATHERING_S: Final = 1  # clients give up on an answer after 5 to 10 s
_PATCHES_PER_SECOND: Final = 20


class Session:
    """One connection; whoever knows its secret may change or end it. etag: of its resource, always the same.

    Subclasses say what it has to do with a stream.
    """

    def __init__(
        self,
        kind: str,
        stream_id: str,
        offer: Offer,
        configuration: RTCConfiguration,
        connect_timeout_s: float,
    ) -> None:
        self.secret = secrets.token_urlsafe(16)
        self.etag = f'"{secrets.token_hex(4)}"'
        self.stream_id = stream_id
        self.on_ended: Callable[[], object] = lambda: None  # called once, when all has been freed
        self._offer = offer
        self._patches = Allowance(_PATCHES_PER_SECOND)
        self.connection = Connection(
            f"{kind} {stream_id} {self.secret[:6]}", configuration, offer, connect_timeout_s, self._closed
        )

    def bind(self, transceiver: RTCRtpTransceiver) -> None:
        """Give a section's sender its track, take its receiver's."""
        raise NotImplementedError

    def left(self) -> None:
        """The connection has ended."""
        raise NotImplementedError

    async def answer(self, first_address: str | None) -> str:
        """The answer to its offer. Raises ApiError 400."""
        return await self.connection.answer(
            self.bind, passive=True, gathering_s=GATHERING_S, first_address=first_address
        )

    def change(self, text: str, if_match: str | None) -> None:
        """Take a fragment's candidates. Raises ApiError 412, 422 (ICE restart), 429."""
        if if_match is not None and if_match.strip() not in ("*", self.etag):
            raise ApiError(412, f"If-Match is not this session's ETag {self.etag}")
        if not self._patches.take():
            text = f"More than {_PATCHES_PER_SECOND} PATCH requests in a second"
            raise ApiError(429, text, headers={"Retry-After": "1"})
        fragment = read_fragment(text)
        if not fragment.credentials <= self._offer.credentials:
            raise ApiError(422, "ICE restart is not supported: end this session and begin another one")
        if self.connection.add_candidates(fragment.entries(self._offer.transports)):
            raise ApiError(429, f"A session takes at most {MAX_CANDIDATES} ICE candidates")

    async def close(self) -> None:
        """End it. Idempotent."""
        await self.connection.close()

    def _closed(self) -> None:
        self.left()
        self.on_ended()


S = TypeVar("S", bound=Session)


class Sessions(Generic[S]):
    """The sessions of one kind, by secret."""

    def __init__(self) -> None:
        self._sessions: dict[str, S] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __iter__(self) -> Iterator[S]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    async def close(self) -> None:
        """End all, in parallel."""
        await asyncio.gather(*(session.close() for session in self), return_exceptions=True)

    async def drain(self, timeout_s: float) -> None:
        """Wait until all have ended, at most `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._empty.wait(), timeout_s)

    def add(self, session: S) -> None:
        self._sessions[session.secret] = session
        self._empty.clear()
        session.on_ended = lambda: self._ended(session)

    def _ended(self, session: S) -> None:
        self._sessions.pop(session.secret, None)
        if not self._sessions:
            self._empty.set()

    def find(self, stream_id: str, secret: str) -> S:
        """Raises ApiError 404."""
        session = self._sessions.get(secret)
        if session is None or session.stream_id != stream_id or session.connection.closed:
            raise ApiError(404, "There is no such session: it has ended, or the URL is not that of Location")
        return session
