"""What happens to a stream, for those who only listen: a control that changes nothing."""

import asyncio
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from gateway.stream.parts import Role
from gateway.stream.stream import Stream
from gateway.waiting import within

_MAX_WAITING: Final = 256  # messages; of a listener that does not read the oldest go
_COMMENT_S: Final = 15.0  # keeps proxies from taking a silent connection for a dead one


class Listener:
    """A control that is told and never says anything."""

    role: Role = "viewer"
    label = "events"

    def __init__(self) -> None:
        self.id = str(uuid.uuid4())
        self._messages: deque[Mapping[str, Any]] = deque(maxlen=_MAX_WAITING)
        self._arrived = asyncio.Event()
        self._closed = False

    def notify(self, message: Mapping[str, Any]) -> None:
        self._messages.append(message)
        self._arrived.set()

    def close(self) -> None:
        self._closed = True
        self._arrived.set()

    async def lines(self) -> AsyncIterator[bytes]:
        """Server-sent events, until the stream has ended."""
        while True:
            try:
                await within(self._arrived.wait(), _COMMENT_S)
            except asyncio.TimeoutError:
                yield b": still there\n\n"
                continue
            self._arrived.clear()
            while self._messages:
                yield f"data: {json.dumps(self._messages.popleft())}\n\n".encode()
            if self._closed:
                return


async def listen(stream: Stream) -> AsyncIterator[bytes]:
    """The events of a stream, beginning with what it is now."""
    listener = Listener()
    stream.add_control(listener)
    listener.notify(stream.introduction(listener))
    stream.on_closed(listener.close)
    try:
        async for line in listener.lines():
            yield line
    finally:
        stream.remove_control(listener)
        stream.forget(listener.close)
