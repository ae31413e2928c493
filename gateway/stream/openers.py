"""Kinds of sources that may be asked for by name, each with the function that attaches one to a stream."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.errors import ApiError
from gateway.http.validation import quoted
from gateway.stream.stream import Stream

Attach = Callable[[Stream, Mapping[str, Any]], Awaitable[None]]
"""attach(stream, wish): give the stream a source. wish: the body of the request. Raises ApiError."""


class Openers:
    """The kinds that this server has. Whoever makes the services registers them."""

    def __init__(self) -> None:
        self._kinds: dict[str, Attach] = {}

    def add(self, kind: str, attach: Attach) -> None:
        self._kinds[kind] = attach

    async def attach(self, stream: Stream, wish: Mapping[str, Any]) -> None:
        """Give the stream a source of the kind that `wish` names; `none` takes away the one that it has.

        Raises ApiError 400 for a kind that this server has not, and what the kind's own function raises.
        """
        kind = str(wish.get("kind", ""))
        if kind == "none":
            stream.stop_sources()
            return
        attach = self._kinds.get(kind)
        if attach is None:
            known = ", ".join([*self._kinds, "none"])
            raise ApiError(400, f"This server has no source of the kind '{quoted(kind, 40)}', only {known}")
        await attach(stream, wish)
        await stream.look_at_source()
