"""Bodies of requests that are taken in pieces."""

import asyncio
from urllib.parse import urlsplit

from quart import Blueprint, request

from tests.serve_app import make_app, serving
from tests.server.peer import until

MIB = 1 << 20


async def test_a_large_body_waits_at_the_sender_until_it_is_read() -> None:
    bp = Blueprint("large", __name__)

    @bp.post("/large")
    async def large() -> dict[str, list[int]]:
        pieces = []
        async for piece in request.body:
            pieces.append(len(piece))
            if len(pieces) < 3:
                await asyncio.sleep(0.3)  # a slow disk
        return {"pieces": pieces}

    async with serving(make_app(bp)) as client:
        answer = await client.call("POST", "/large", body=bytes(60 * MIB))

    pieces = answer.json()["pieces"]
    assert sum(pieces) == 60 * MIB
    assert max(pieces) < 5 * MIB


async def test_a_refused_body_that_never_ends_is_answered_and_its_connection_closed() -> None:
    bp = Blueprint("refusing", __name__)

    @bp.post("/refusing")
    async def refusing() -> tuple[dict[str, str], int]:
        await until(lambda: not request.body._room.is_set(), 30, "more than may wait")
        await asyncio.sleep(0.2)  # for the server's own queue, which is full then
        return {"detail": "too long"}, 413

    async with serving(make_app(bp)) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(client.url).port)
        writer.write(b"POST /refusing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(8 * (b"100000\r\n" + bytes(MIB) + b"\r\n"))  # and it does not go away
        answer = await asyncio.wait_for(reader.read(), 60)  # to the end of the connection
        writer.close()

    assert answer.startswith(b"HTTP/1.1 413")
    assert answer.endswith(b'{"detail":"too long"}\n')


async def test_a_body_that_nobody_reads_does_not_hold_up_the_answer() -> None:
    bp = Blueprint("unread", __name__)

    @bp.post("/unread")
    async def unread() -> dict[str, str]:
        return {"answer": "at once"}

    async with serving(make_app(bp)) as client:
        answer = await client.call("POST", "/unread", body=bytes(20 * MIB))

    assert answer.json() == {"answer": "at once"}
