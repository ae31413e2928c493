"""Files as the bodies of requests: taken in pieces, no faster than they are stored."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent
from quart import Quart, Request
from quart.asgi import ASGIHTTPConnection
from quart.wrappers.request import Body

from gateway.errors import ApiError
from gateway.waiting import within

_WAITING_BYTES: Final = 4 << 20
_PIECE_TIMEOUT_S: Final = 60.0
_LINGER_S: Final = 2.0  # for who sends on after the answer: a connection that closes at once would lose it


def take_bodies_in_pieces(app: Quart) -> None:
    """Let routes read bodies of any length with `async for`; each route has to limit what it takes.

    Quart itself keeps all that has come and was not read yet, and has one limit for all routes.
    """
    app.config["MAX_CONTENT_LENGTH"] = None
    app.request_class = _Request
    app.asgi_http_class = _Connection


async def not_stalled(body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a body. Raises ApiError 408 when none comes for a minute."""
    pieces = body.__aiter__()
    while True:
        try:
            yield await within(pieces.__anext__(), _PIECE_TIMEOUT_S)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise ApiError(408, f"No data came for {_PIECE_TIMEOUT_S:.0f} s; send the file again.") from error


class _Body(Body):
    """Knows how much of it waits to be read."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._waiting_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._is_unwanted = False

    def append(self, data: bytes) -> None:
        if self._is_unwanted:
            return
        super().append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > _WAITING_BYTES:
            self._room.clear()

    async def __anext__(self) -> bytes:
        piece = await super().__anext__()
        self._waiting_bytes = 0
        self._room.set()
        return piece

    async def room(self) -> None:
        """Wait until more may come."""
        await self._room.wait()

    async def drop_the_rest(self) -> None:
        """Nobody will read what comes: take it, for a moment, so that nothing waits for room."""
        self._is_unwanted = True
        self.clear()
        self._room.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._complete.wait(), _LINGER_S)


class _Request(Request):
    body_class = _Body
    body: _Body


class _Connection(ASGIHTTPConnection):
    async def handle_messages(self, request: Request, receive: ASGIReceiveCallable) -> None:
        async def receive_slowly() -> ASGIReceiveEvent:
            assert isinstance(request, _Request)
            await request.body.room()
            return await receive()

        await super().handle_messages(request, receive_slowly)

    async def handle_request(self, request: Request, send: ASGISendCallable) -> None:
        async def send_and_wait(message: ASGISendEvent) -> None:
            """The last message ends the connection, unless the request's body has ended before."""
            if message["type"] == "http.response.body" and not message["more_body"]:
                assert isinstance(request, _Request)
                await request.body.drop_the_rest()
            await send(message)

        await super().handle_request(request, send_and_wait)
