"""Turns of a model's streams: whose chunk is made next, and which chunks nobody wants any more.

Chunks are made by one thread. Triton's own thread is free meanwhile and brings what comes for a stream while
its chunk is being made: that there are newer parameters, or that the viewer has left. Nothing is cancelled in
Triton for that: a request that it cancels while it waits takes its whole sequence along.
"""

import threading
import traceback
from collections.abc import Callable

from streaming.triton.sessions import StreamSession


class Turn:
    """One request that the thread serves."""

    def __init__(
        self, session: StreamSession | None, serve: Callable[["Turn"], None], skip: Callable[[], None]
    ) -> None:
        """session: None for a request without a stream.

        serve: does the work, and looks at `unwanted` now and then. skip: answers where there is no work to do
        after all.
        """
        self.session = session
        self.serve = serve
        self.skip = skip
        self.has_pictures = False  # the first are on their way to the viewer
        self._outdated = False
        self._abandoned = False

    @property
    def unwanted(self) -> bool:
        """Whether to stop: nobody looks, or newer parameters wait and nothing was shown yet."""
        return self._abandoned or (self._outdated and not self.has_pictures)

    def give_up(self) -> None:
        """Newer parameters wait."""
        self._outdated = True

    def abandon(self) -> None:
        """Nobody looks any more."""
        self._abandoned = True


class Turns:
    """The requests of a model that wait, and the thread that serves them one after another.

    The stream whose last chunk began longest ago is next: streams take turns, and one that gives up a chunk
    which waits does not lose its place.
    """

    def __init__(self) -> None:
        self._waiting: list[Turn] = []
        self._running: Turn | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._count = 0
        self._thread = threading.Thread(target=self._serve, name="turns", daemon=True)
        self._thread.start()

    def put(self, turn: Turn) -> None:
        """Serve this as soon as it is its turn."""
        with self._changed:
            self._waiting.append(turn)
            self._changed.notify()

    def give_up(self, session: StreamSession) -> None:
        """Newer parameters wait: end this session's chunk, unless its first pictures are on their way."""
        self._end(session, Turn.give_up)

    def abandon(self, session: StreamSession) -> None:
        """The session is over: end its chunk."""
        self._end(session, Turn.abandon)

    def _end(self, session: StreamSession, end: Callable[[Turn], None]) -> None:
        with self._changed:
            skipped = [turn for turn in self._waiting if turn.session is session]
            self._waiting = [turn for turn in self._waiting if turn.session is not session]
            if self._running is not None and self._running.session is session:
                end(self._running)
        for turn in skipped:
            turn.skip()

    @property
    def busy(self) -> list[StreamSession]:
        """Sessions that wait for their turn, or have it."""
        with self._changed:
            turns = [*self._waiting, *([self._running] if self._running is not None else [])]
        return [turn.session for turn in turns if turn.session is not None]

    def close(self) -> None:
        """End the thread after what is being served; what waits is skipped."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for turn in self._waiting:
            turn.skip()

    def _serve(self) -> None:
        while (turn := self._next()) is not None:
            try:
                turn.serve(turn)
            except Exception:  # thread boundary: one answer that cannot be sent must not end all streams
                traceback.print_exc()

    def _next(self) -> Turn | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            turn = self._running = min(self._waiting, key=_last_turn)
            self._waiting.remove(turn)
            self._count += 1
            if turn.session is not None:
                turn.session.last_turn = self._count
            return turn


def _last_turn(turn: Turn) -> int:
    return 0 if turn.session is None else turn.session.last_turn
