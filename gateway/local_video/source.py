"""Another program's pictures as a stream's source."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from gateway.local_video.interface import RETRY_S, Receiver
from gateway.stream.pictures.video_input import Feed, shrink

logger = logging.getLogger(__name__)

_POLL_S: Final = 1 / 60
_LOST_S: Final = 2.0  # without a picture

Tell = Callable[[str], None]


class LocalSource:
    """Pushes what a receiver gets, from a thread of its own; looks for its sender again when it has gone."""

    def __init__(
        self,
        kind: str,
        name: str,
        open_receiver: Callable[[str], Receiver],
        tell: Tell,
        retry_s: float = RETRY_S,
    ) -> None:
        """tell(text): what is wrong, once for each time that it begins; called on the event loop."""
        self.kind = kind
        self.name = name
        self._open_receiver = open_receiver
        self._tell = tell
        self._retry_s = retry_s
        self._stopped = threading.Event()
        self._size: tuple[int, int] | None = None  # height and width
        self._state: Literal["connecting", "running", "lost"] = "connecting"

    def start(self, feed: Feed) -> None:
        loop = asyncio.get_running_loop()
        name = f"{self.kind}-source"
        threading.Thread(target=self._run, args=(feed, loop), name=name, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def info(self) -> Mapping[str, Any]:
        height, width = self._size or (None, None)
        return {"kind": self.kind, "name": self.name, "width": width, "height": height, "state": self._state}

    def _run(self, feed: Feed, loop: asyncio.AbstractEventLoop) -> None:
        told: str | None = None
        while not self._stopped.is_set():
            try:
                self._receive(feed, loop)
            except Exception as error:  # thread boundary: the library fails as it likes, and is tried again
                text = str(error) or type(error).__name__
                if self._state == "running" or text != told:
                    logger.info("The %s source '%s' is lost: %s", self.kind, self.name, text)
                    self._call(loop, self._tell, text)
                told, self._state = text, "lost"
                self._stopped.wait(self._retry_s)

    def _receive(self, feed: Feed, loop: asyncio.AbstractEventLoop) -> None:
        receiver = self._open_receiver(self.name)
        try:
            newest = time.monotonic()
            while not self._stopped.wait(_POLL_S):
                picture = receiver.receive()
                if picture is not None:
                    newest = time.monotonic()
                    height, width = picture.shape[:2]
                    self._state, self._size = "running", (height, width)
                    if feed.wanted:
                        size = feed.size
                        self._call(loop, feed.push, shrink(picture, size), size)
                    else:
                        self._call(loop, feed.skip)
                elif self._state == "running" and time.monotonic() - newest > _LOST_S:
                    self._state = "lost"
        finally:
            receiver.close()

    def _call(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
        if not self._stopped.is_set() and not loop.is_closed():
            loop.call_soon_threadsafe(call, *arguments)
