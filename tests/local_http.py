"""A small HTTP/1.1 server on a free local port, for what tests cannot have: services on the internet.

Unlike a framework's server it can also misbehave: send less than it promised, or in slow pieces.
"""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

T = TypeVar("T", bound="LocalHttp")


@dataclass(frozen=True)
class Request:
    """header names in lower case; target: path and query as they were sent."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Reply:
    """An answer.

    cut_after: close the connection after this many bytes of the body. It is sent in pieces of `piece_bytes`
    with `piece_delay_s` before each.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    piece_bytes: int = 1 << 20
    piece_delay_s: float = 0.0


class LocalHttp:
    """Answers one request per connection with what `answer` says, and remembers the requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.port = 0
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: Request) -> Reply:
        """To be overridden."""
        return Reply(404)

    async def __aenter__(self: T) -> T:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            request = await _read(reader)
            self.requests.append(request)
            await _send(writer, await self.answer(request), head_only=request.method == "HEAD")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, which some tests want
        finally:
            self._connections.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, body)


async def _send(writer: asyncio.StreamWriter, reply: Reply, *, head_only: bool) -> None:
    headers = {"Content-Length": str(len(reply.body)), "Connection": "close"} | reply.headers
    lines = [f"HTTP/1.1 {reply.status} Status", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode("latin-1"))
    body = b"" if head_only else reply.body[: reply.cut_after]
    for start in range(0, len(body), reply.piece_bytes):
        if reply.piece_delay_s:
            await asyncio.sleep(reply.piece_delay_s)
        writer.write(body[start : start + reply.piece_bytes])
        await writer.drain()
    await writer.drain()
