"""A stream's pictures for another program."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from gateway.local_video.interface import RETRY_S, Sender
from gateway.serving.interface import Images
from gateway.stream.pictures.hub import Hub
from gateway.waiting import end

logger = logging.getLogger(__name__)

_WAITING: Final = 2  # pictures; the newest win
_JOIN_S: Final = 5.0

Tell = Callable[[str], None]


class LocalSink:
    """Hands pictures to a sender, which lives in a thread of its own; tries again when it fails."""

    def __init__(
        self, kind: str, name: str, open_sender: Callable[[str], Sender], tell: Tell, retry_s: float = RETRY_S
    ) -> None:
        """tell(text): what is wrong, once for each time that it begins; called on the event loop."""
        self.kind = kind
        self.name = name
        self._open_sender = open_sender
        self._tell = tell
        self._retry_s = retry_s
        self._queue: deque[Images] = deque(maxlen=_WAITING)
        self._arrived = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._forwarding: asyncio.Task[None] | None = None
        self._size: tuple[int, int] | None = None  # height and width
        self._state: Literal["waiting", "running", "failed"] = "waiting"
        self._since = time.time()
        self._frames = 0
        self._dropped = 0

    @property
    def info(self) -> Mapping[str, Any]:
        height, width = self._size or (None, None)
        return {
            "kind": self.kind,
            "id": self.kind,  # a stream has one of each
            "name": self.name,
            "state": self._state,
            "since": self._since,
            "codec": None,
            "width": width,
            "height": height,
            "frames": self._frames,
            "dropped": self._dropped,
        }

    def start(self, output: Hub) -> None:
        """Show the pictures of `output` from now on."""
        loop = asyncio.get_running_loop()
        self._forwarding = asyncio.create_task(self._forward(output), name=f"{self.kind}-sink")
        name = f"{self.kind}-sink"
        self._thread = threading.Thread(target=self._run, args=(loop,), name=name, daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Release the name. Idempotent."""
        if self._forwarding is not None:
            await end(self._forwarding)
        with self._arrived:
            self._stopped = True
            self._arrived.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _JOIN_S)

    async def _forward(self, output: Hub) -> None:
        pictures = output.join()
        with contextlib.closing(pictures):
            while (picture := await pictures.next()) is not None:
                with self._arrived:
                    self._dropped += len(self._queue) == _WAITING
                    self._queue.append(picture)
                    self._arrived.notify()

    def _next(self) -> Images | None:
        """The picture that waits longest; None: there are no more."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._queue or self._stopped)
            return None if self._stopped else self._queue.popleft()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        told: str | None = None
        while not self._stopped:
            try:
                self._send()
            except Exception as error:  # thread boundary: the library fails as it likes, and is tried again
                text = str(error) or type(error).__name__
                if text != told and not loop.is_closed():
                    logger.warning("The %s output '%s' failed: %s", self.kind, self.name, text)
                    loop.call_soon_threadsafe(self._tell, text)
                told, self._state = text, "failed"
                self._rest()

    def _send(self) -> None:
        sender = self._open_sender(self.name)
        try:
            while (picture := self._next()) is not None:
                sender.send(picture)
                self._frames += 1
                height, width = picture.shape[:2]
                self._state, self._size = "running", (height, width)
        finally:
            sender.close()

    def _rest(self) -> None:
        """Wait before another attempt; what comes in the meantime is missed."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._stopped, self._retry_s)
            self._queue.clear()
