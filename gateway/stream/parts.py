"""What is attached to a stream, whatever carries it: where pictures come from, who sees, who controls it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from gateway.errors import Problem
from gateway.stream.parameters.state import ChunkParameters
from gateway.stream.pictures.video_input import Feed

Role = Literal["viewer", "controller", "driver"]


class Source(Protocol):
    """Where a stream's input pictures come from: a camera, a file. It is given to `Stream.take_source`."""

    def start(self, feed: Feed) -> None:
        """Push pictures into `feed`, on the event loop's thread, from now on."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What people are told of it: `kind`, `name`; `width`, `height`, `fps` and `state` where it knows."""

    def stop(self) -> None:
        """Push no more pictures: another source takes over, or the stream ends. Idempotent."""


class Sink(Protocol):
    """Who takes a stream's pictures, from its `output`: a viewer, a recorder."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What people are told: `kind`, `id`, `since`; `codec`, `width`, `height`, `frames`, `dropped`."""

    async def close(self) -> None:
        """The stream ends: write what is left. Idempotent; waits for nothing that waits for the stream."""


class Listener(Protocol):
    """Who follows a stream chunk by chunk: a recorder, a replay. Everything is called on the event loop."""

    def before_chunk(self, number: int) -> None:
        """The chunk takes its parameters next; these may still be changed. number: of good chunks before."""

    def chunk_taken(self, number: int, chunk: ChunkParameters) -> None:
        """The chunk has its parameters. It may be begun again, with the same number."""

    def happened(self, event: str, details: Mapping[str, Any] | None = None) -> None:
        """`pause`, `resume`, `source`, `pipeline`, `chunk_failed`."""


class Control(Protocol):
    """Who changes a stream's parameters, with `Stream.update`, and hears what becomes of the stream."""

    @property
    def id(self) -> str:
        """A peer's session id, or the name of what carries it."""

    @property
    def role(self) -> Role:
        """What it may do: `driver` always drives, a `controller` when it has the seat."""

    @property
    def label(self) -> str:
        """What people call it."""

    def notify(self, message: Mapping[str, Any]) -> None:
        """Tell whoever controls the stream something (api.md 9.6); returns at once."""


def parameter_error(problems: Sequence[Problem]) -> dict[str, Any]:
    """A message: what was wrong with parameters, or with what they ask for."""
    errors = [{"loc": p["loc"], "msg": p["msg"], "type": p["type"]} for p in problems]
    return {"type": "parameter_error", "errors": errors}
