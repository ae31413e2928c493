"""The data channels of one peer: which are heard, how fast, and what waits until the peer reads it."""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiortc import RTCDataChannel
from aiortc.exceptions import InvalidStateError

from gateway.errors import Problem
from gateway.stream.parts import Role, parameter_error

logger = logging.getLogger(__name__)

PARAMETER_LABELS: Final = frozenset({"parameters", "control"})
MAX_MESSAGE_BYTES: Final = 1 << 20
MESSAGES_PER_SECOND: Final = 200  # for long
_BURST: Final = 1000
_BYTES_PER_MESSAGE: Final = 4096  # a longer one counts for several
_PAUSE_S: Final = 0.25  # between two looks at messages that come too fast

_MAX_CHANNELS: Final = 16
_MAX_CHANNELS_ASKED_FOR: Final = 128
_MAX_QUEUED_MESSAGES: Final = 2000
_MAX_QUEUED_BYTES: Final = 2 << 20
_MAX_BUFFERED_BYTES: Final = 256 << 10
_MAX_HELD_MESSAGES: Final = 100

Message = str | bytes | None  # None: larger than MAX_MESSAGE_BYTES
Update = Callable[[Sequence[Message], bool], Awaitable[list[list[Problem]]]]


class _Held:
    """Messages that cannot be sent now, a bounded number of them: errors about parameters go first."""

    def __init__(self) -> None:
        self._messages: deque[tuple[str, bool]] = deque()

    def __bool__(self) -> bool:
        return bool(self._messages)

    def add(self, text: str, *, droppable: bool) -> None:
        self._messages.append((text, droppable))
        if len(self._messages) > _MAX_HELD_MESSAGES:
            oldest = next((message for message in self._messages if message[1]), self._messages[0])
            self._messages.remove(oldest)

    def pop(self) -> tuple[str, bool]:
        return self._messages.popleft()


class _Outlet:
    """Sends to one channel, no faster than its peer reads."""

    def __init__(self, channel: RTCDataChannel) -> None:
        self.channel = channel
        self._held = _Held()
        channel.bufferedAmountLowThreshold = _MAX_BUFFERED_BYTES // 2
        channel.on("bufferedamountlow", self._send_held)

    @property
    def is_open(self) -> bool:
        return self.channel.readyState == "open"

    def send(self, text: str, *, droppable: bool) -> None:
        if self._held or self.channel.bufferedAmount > _MAX_BUFFERED_BYTES:
            self._held.add(text, droppable=droppable)
            return
        try:
            self.channel.send(text)
        except (InvalidStateError, ValueError) as error:  # it closed; longer than the peer takes
            logger.debug("Message on data channel %r not sent: %s", self.channel.label, error)

    def _send_held(self) -> None:
        held, self._held = self._held, _Held()
        while held:
            text, droppable = held.pop()
            self.send(text, droppable=droppable)


@dataclass(slots=True)
class _MessageRate:
    """A bucket of messages that fills again by and by."""

    left: float = _BURST
    at: float = 0.0  # monotonic seconds
    exceeded: bool = False

    def take(self, cost: int) -> bool:
        """Whether that many more may be handled one by one; else the bucket is empty afterwards."""
        now = time.monotonic()
        self.left = min(_BURST, self.left + (now - self.at) * MESSAGES_PER_SECOND)
        self.at = now
        fits = cost <= self.left
        self.left = self.left - cost if fits else 0.0
        if fits and self.left > _BURST / 2:
            self.exceeded = False
        return fits


class Channels:
    """The data channels of one peer, a control of its stream.

    Parameters come over the first channel and over those that are called `parameters` or `control`; what is
    wrong with a message is told on the channel that it came from, everything else on the newest of these.
    Messages are handled in the order of their arrival, by `run`.
    """

    def __init__(
        self, session_id: str, role: Role, label: str, update: Update, on_abuse: Callable[[], None]
    ) -> None:
        """update(messages, together): apply them one by one, or together as one update; what was wrong with
        each, or with all. on_abuse: the peer opens channels without end.
        """
        self.id = session_id
        self.role: Role = role
        self.label = label
        self._update = update
        self._on_abuse = on_abuse
        self._channels: set[RTCDataChannel] = set()
        self._outlets: list[_Outlet] = []  # of the channels for parameters
        self._held = _Held()  # until there is one
        self._queue: deque[tuple[_Outlet, Message]] = deque()
        self._queued_bytes = 0
        self._overflowed = False
        self._arrived = asyncio.Event()
        self._rate = _MessageRate(at=time.monotonic())
        self._told: set[str] = set()  # problems that were told since messages come too fast

    def add(self, channel: RTCDataChannel) -> None:
        """Take a channel that the peer opened."""
        self._channels.add(channel)
        channel.on("close", lambda: self._closed(channel))
        if len(self._channels) > _MAX_CHANNELS:
            if len(self._channels) > _MAX_CHANNELS_ASKED_FOR:
                self._on_abuse()
            channel.close()
            return
        self._outlets = [outlet for outlet in self._outlets if outlet.is_open]
        if self._outlets and channel.label not in PARAMETER_LABELS:
            logger.info("[%s] Data channel %r is not for parameters", self.id, channel.label[:40])
            return
        outlet = _Outlet(channel)
        self._outlets.append(outlet)
        channel.on("message", lambda message: self._receive(outlet, message))
        while self._held:
            text, droppable = self._held.pop()
            outlet.send(text, droppable=droppable)

    def notify(self, message: Mapping[str, Any]) -> None:
        """Tell the peer something, now or as soon as there is a channel."""
        newest = next((outlet for outlet in reversed(self._outlets) if outlet.is_open), None)
        self._send(message, newest)

    async def run(self) -> None:
        """Handle the messages that come in."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._queue, self._queued_bytes = list(self._queue), deque(), 0
            overflowed, self._overflowed = self._overflowed, False
            fits = self._rate.take(sum(1 + _size(message) // _BYTES_PER_MESSAGE for _, message in batch))
            try:
                await self._handle(batch, together=overflowed or not fits)
            except Exception:  # task boundary: messages must go on to be heard
                logger.exception("[%s] Parameter messages could not be handled", self.id)

    async def _handle(self, batch: list[tuple[_Outlet, Message]], *, together: bool) -> None:
        messages = [message for _, message in batch]
        if not together:
            for (outlet, _), problems in zip(batch, await self._update(messages, False), strict=True):
                self._report(problems, outlet)
        elif messages:
            await self._handle_excess(messages, batch[-1][0])
            await asyncio.sleep(_PAUSE_S)

    async def _handle_excess(self, messages: list[Message], outlet: _Outlet) -> None:
        if not self._rate.exceeded:
            self._rate.exceeded = True
            self._told = set()
            logger.warning("[%s] Messages come too fast", self.id)
        [problems] = await self._update(messages, True)
        text = (
            f"Messages come faster than {MESSAGES_PER_SECOND} per second: of those that wait only the newest "
            "value of each parameter counts"
        )
        new = [p for p in [Problem(loc=[], msg=text, type="too_many_messages"), *problems] if self._is_new(p)]
        self._report(new, outlet)

    def _is_new(self, problem: Problem) -> bool:
        key = f"{problem['type']} {problem['loc']}"
        if key in self._told or len(self._told) >= _MAX_HELD_MESSAGES:
            return False
        self._told.add(key)
        return True

    def report(self, problems: Sequence[Problem]) -> None:
        """Tell the peer what was wrong with its parameters; nothing to tell is fine."""
        self._report(problems, None)

    def _report(self, problems: Sequence[Problem], outlet: _Outlet | None) -> None:
        if not problems:
            return
        message = parameter_error(problems)
        if outlet is None or not outlet.is_open:
            self.notify(message)
        else:
            self._send(message, outlet)

    def _send(self, message: Mapping[str, Any], outlet: _Outlet | None) -> None:
        text, droppable = json.dumps(message), message["type"] == "parameter_error"
        if outlet is None:
            self._held.add(text, droppable=droppable)
        else:
            outlet.send(text, droppable=droppable)

    def _receive(self, outlet: _Outlet, message: str | bytes) -> None:
        kept: Message = message if len(message) <= MAX_MESSAGE_BYTES else None
        self._queue.append((outlet, kept))
        self._queued_bytes += _size(kept)
        while len(self._queue) > _MAX_QUEUED_MESSAGES or self._queued_bytes > _MAX_QUEUED_BYTES:
            self._queued_bytes -= _size(self._queue.popleft()[1])
            self._overflowed = True
        self._arrived.set()

    def _closed(self, channel: RTCDataChannel) -> None:
        self._channels.discard(channel)
        self._outlets = [outlet for outlet in self._outlets if outlet.channel is not channel]


def _size(message: Message) -> int:
    return len(message or "")
