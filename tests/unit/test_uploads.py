"""Bodies of requests that are taken in pieces."""

import asyncio

from quart import Blueprint, request

from tests.serve_app import make_app, serving

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


async def test_a_body_that_nobody_reads_does_not_hold_up_the_answer() -> None:
    bp = Blueprint("unread", __name__)

    @bp.post("/unread")
    async def unread() -> dict[str, str]:
        return {"answer": "at once"}

    async with serving(make_app(bp)) as client:
        answer = await client.call("POST", "/unread", body=bytes(20 * MIB))

    assert answer.json() == {"answer": "at once"}
