"""All publications of this gateway, and the one that it was told to have by its environment."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Final

from gateway.errors import ApiError
from gateway.pipelines.state import Pipelines, State
from gateway.publications.publication import Publication
from gateway.publications.target import Target
from gateway.stream.stream import Stream
from gateway.stream.streams import MAIN, Streams
from gateway.waiting import end
from gateway.webrtc.ice.servers import IceServers

logger = logging.getLogger(__name__)

_MAX_OF_STREAM: Final = 8
_RETRY_S: Final = 5.0


class Publications:
    """The table of publications, the oldest first."""

    def __init__(self, streams: Streams, ice: IceServers, connect_timeout_s: float) -> None:
        self._streams = streams
        self._ice = ice
        self._connect_timeout_s = connect_timeout_s
        self._publications: dict[str, Publication] = {}

    def __iter__(self) -> Iterator[Publication]:
        return iter(list(self._publications.values()))

    def of(self, stream: Stream) -> list[Publication]:
        return [publication for publication in self if publication.stream is stream]

    def begin(self, stream: Stream, target: Target, *, gives_up: bool = True) -> Publication:
        """Publish a stream. Raises ApiError 503 (the server stops, or its network is full, or too many)."""
        self._streams.require_place(stream)
        if len(self.of(stream)) >= _MAX_OF_STREAM:
            raise ApiError(
                503, f"A stream is published to at most {_MAX_OF_STREAM} servers: DELETE one first"
            )
        publication = Publication(
            stream,
            target,
            self._ice,
            self._connect_timeout_s,
            lambda publication: self._publications.pop(publication.id, None),
            gives_up=gives_up,
        )
        self._publications[publication.id] = publication
        return publication

    def find(self, stream: Stream, publication_id: str) -> Publication:
        """Raises ApiError 404."""
        publication = self._publications.get(publication_id)
        if publication is None or publication.stream is not stream:
            raise ApiError(404, "This stream has no such publication: it has ended, or the id is another's")
        return publication

    async def close(self) -> None:
        """End all, in parallel."""
        await asyncio.gather(*(each.close() for each in self), return_exceptions=True)


class Autopublish:
    """Publishes the stream `main` of whatever is loaded, which it makes when there is none, for ever.

    A DELETE of the publication is respected; when the stream ends, another one is made.
    """

    def __init__(
        self, pipelines: Pipelines, streams: Streams, publications: Publications, target: Target
    ) -> None:
        self._pipelines = pipelines
        self._streams = streams
        self._publications = publications
        self._target = target
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Go on in the background."""
        self._task = asyncio.create_task(self._run(), name="autopublish")

    async def close(self) -> None:
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        while True:
            await self._pipelines.wait_for(State.LOADED)
            try:
                stream = self._streams.get(MAIN) or await self._streams.create(MAIN, kept=True)
                publication = self._publications.begin(stream, self._target, gives_up=False)
                await publication.ended.wait()
                if not stream.closed:
                    return
            except ApiError as error:
                logger.warning("The stream %s cannot be published now: %s", MAIN, error)
            except Exception:  # task boundary: without this task nobody tries again
                logger.exception("The stream %s cannot be published now", MAIN)
            await asyncio.sleep(_RETRY_S)
