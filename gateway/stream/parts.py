"""What is attached to a stream, whatever carries it: where its pictures come from, who controls it.

Who looks at it is a `Sink` of its `Hub`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gateway.errors import Problem
from gateway.stream.video_input import Feed


class Source(Protocol):
    """Where a stream's input pictures come from: a camera, a file. It is given to `Stream.take_source`."""

    def start(self, feed: Feed) -> None:
        """Push pictures into `feed`, on the event loop's thread, from now on."""

    def stop(self) -> None:
        """Push no more pictures: another source takes over, or the stream ends. Idempotent."""


class Control(Protocol):
    """Who changes a stream's parameters, with `Stream.update`, and hears what becomes of the stream."""

    def notify(self, message: Mapping[str, Any]) -> None:
        """Tell whoever controls the stream something (api.md 9.6); returns at once."""


def parameter_error(problems: Sequence[Problem]) -> dict[str, Any]:
    """A message: what was wrong with parameters, or with what they ask for."""
    errors = [{"loc": p["loc"], "msg": p["msg"], "type": p["type"]} for p in problems]
    return {"type": "parameter_error", "errors": errors}
