"""What a pipeline's Triton model is made of, apart from Triton: commands, streams and the table of sessions.

Torch-free and free of Triton's Python package, so that it can be tested anywhere.
"""

import json
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streaming.errors import UnknownSequenceError, WanstreamError
from streaming.triton.protocol import Meta, Op

Images = npt.NDArray[np.uint8]
NO_PICTURES = np.zeros((0, 1, 1, 3), np.uint8)


class ChunkCancelled(Exception):
    """Nobody wants the chunk any more; the stream's state is what it was before the chunk."""


class Stream(Protocol):
    """One session on a pipeline."""

    def next_chunk(
        self, parameters: Mapping[str, Any], video: Images | None, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Images, Meta]]:
        """Make one chunk, and yield its frames in groups as soon as they are there.

        parameters: all that is in force, and the one-shot keys of this chunk. video: uint8 [T, H, W, 3] RGB.
        Yields (uint8 [T, H, W, 3] RGB, meta). Mark the last group with `meta["last"] = True` where it is
        known, otherwise an empty response has to tell the client that the chunk is over.

        The stream commits its own state before it yields the last group, or before it returns, not earlier:
        a chunk that fails or is cancelled must leave no trace. Call `cancelled()` before every step that
        takes long and raise ChunkCancelled when it is true. Any other exception fails the chunk; the text of
        a WanstreamError is shown to the user, FatalStreamError ends the stream.
        """
        ...


class ModelRunner(Protocol):
    """Other models on the same server."""

    def is_ready(self, name: str) -> bool:
        """Whether model `name` is loaded."""

    def run(self, name: str, inputs: Mapping[str, Any], outputs: list[str]) -> dict[str, Any]:
        """Run model `name` once. Only in `next_chunk` and `warm_up`. Raises WanstreamError.

        An input is a numpy array, or, where numpy has no such type or the memory is a GPU's, whatever speaks
        DLPack. Results speak DLPack, and are valid until the next call.
        """

    def load(self, name: str, config: str | None = None) -> None:
        """Load model `name`; no effect if it is loaded so. As `run`, only in `next_chunk` and `warm_up`.

        config: its configuration as JSON; None: as its directory says. Raises WanstreamError.
        """

    def unload(self, name: str) -> None:
        """Unload model `name` and wait until it is gone; no effect if it is not loaded.

        Raises WanstreamError when it is not gone within some seconds.
        """


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a pipeline gets when it is loaded.

    parameters: `parameters` of the configuration that the load sent, always strings.
    """

    parameters: Mapping[str, str]
    models: ModelRunner
    directory: Path  # of the Triton model


class Pipeline(Protocol):
    """What `1/model.py` names: called with the context, once per load; raises WanstreamError to refuse."""

    def open_stream(self) -> Stream:
        """A new stream in its first state; cheap."""

    def warm_up(self) -> None:
        """Run every step once, so that the first chunk of the first user is not slow."""

    def adapt(self, parameters: Mapping[str, Any]) -> None:
        """Go on with the LoRA files that `parameters` lists beside the weights, from every next chunk on.

        Raises WanstreamError; those of before stay.
        """

    def close(self) -> None:
        """Called once, when the model is unloaded."""


@dataclass(frozen=True, slots=True)
class ParsedCommand:
    """Tensor `params` of a request."""

    op: Op
    parameters: dict[str, Any]


def parse_command(text: bytes | str) -> ParsedCommand:
    """Read tensor `params`. Raises WanstreamError when it is not a command of `protocol`."""
    try:
        command = json.loads(text)
    except ValueError as error:
        raise WanstreamError(
            f"Tensor 'params' must hold one JSON object; it cannot be read: {error}."
        ) from error
    if not isinstance(command, dict):
        raise WanstreamError(f"Tensor 'params' must hold a JSON object, not {type(command).__name__}.")
    try:
        op = Op(command.get("op"))
    except ValueError as error:
        names = ", ".join(op.value for op in Op)
        raise WanstreamError(f"'op' must be one of {names}; got {command.get('op')!r}.") from error
    parameters = command.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise WanstreamError(f"'parameters' must be a JSON object, not {type(parameters).__name__}.")
    return ParsedCommand(op, parameters)


class StreamSession:
    """One sequence: its stream, which the first chunk opens, and where it is."""

    def __init__(self, open_stream: Callable[[], Stream]) -> None:
        self._open_stream = open_stream
        self._stream: Stream | None = None
        self.next_chunk = 0  # number of the chunk that comes next
        self.last_used_s = 0.0
        self.last_turn = 0  # grows with every chunk that a model begins

    def generate(
        self, parameters: Mapping[str, Any], video: Images | None, cancelled: Callable[[], bool]
    ) -> Generator[tuple[Images, Meta], None, None]:
        """Make one chunk with `parameters`, all that are in force.

        Yields what the stream yields, with the chunk's number; exactly the last item has `last` set. Raises
        ChunkCancelled, and whatever the stream raises.
        """
        if self._stream is None:
            self._stream = self._open_stream()
        groups = self._stream.next_chunk(parameters, video, cancelled)
        number = self.next_chunk
        try:
            for frames, meta in groups:
                last = meta.get("last", False)
                if last:
                    self.next_chunk += 1
                elif cancelled():
                    raise ChunkCancelled
                yield frames, Meta(**{**meta, "chunk": number, "last": last})
                if last:
                    return
        finally:
            _close(groups)
        self.next_chunk += 1
        yield NO_PICTURES, Meta(chunk=number, last=True)


def _close(groups: Iterator[tuple[Images, Meta]]) -> None:
    """End a generator now, not when it is collected: its `finally` blocks belong to this chunk."""
    close = getattr(groups, "close", None)
    if close is not None:
        close()


class SessionTable:
    """The sessions of one model by Triton's sequence id.

    Triton forgets a sequence that was silent for too long and does not tell the model; so this table forgets
    as well.
    """

    def __init__(self, max_idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_idle_s = max_idle_s
        self._clock = clock
        self._sessions: dict[int, StreamSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._sessions

    def start(self, sequence_id: int, open_stream: Callable[[], Stream]) -> StreamSession:
        """Begin a session; one with the same id is replaced."""
        session = self._sessions[sequence_id] = StreamSession(open_stream)
        self.touch(session)
        return session

    def find(self, sequence_id: int) -> StreamSession | None:
        """The session, if it is known."""
        return self._sessions.get(sequence_id)

    def get(self, sequence_id: int) -> StreamSession:
        """The session, marked as used now. Raises UnknownSequenceError."""
        session = self._sessions.get(sequence_id)
        if session is None:
            raise UnknownSequenceError(
                f"Session {sequence_id} is not known here: it was not started, or silent for more than "
                f"{self.max_idle_s:g} s. Start it again."
            )
        self.touch(session)
        return session

    def touch(self, session: StreamSession) -> None:
        """Mark a session as used now."""
        session.last_used_s = self._clock()

    def end(self, sequence_id: int) -> None:
        """Forget a session; no error when it is unknown."""
        self._sessions.pop(sequence_id, None)

    def expire(self, busy: Collection[StreamSession] = ()) -> list[int]:
        """Forget the sessions that were silent for too long; returns their ids.

        busy: those of which a chunk is being made or waits for its turn; they stay.
        """
        limit = self._clock() - self.max_idle_s
        expired = [
            number
            for number, session in self._sessions.items()
            if session.last_used_s < limit and session not in busy
        ]
        for number in expired:
            del self._sessions[number]
        return expired
