"""Server-sent events: messages that a client hears as they come."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from quart import Response

from gateway.waiting import end

_SILENCE_S: Final = 30.0  # then a comment keeps proxies from closing the connection


def event_stream(messages: AsyncIterator[Mapping[str, Any]], silence_s: float = _SILENCE_S) -> Response:
    """An answer that goes on as long as the client listens."""
    response = Response(_lines(messages, silence_s), content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold events back
    response.timeout = None
    return response


async def _lines(messages: AsyncIterator[Mapping[str, Any]], silence_s: float) -> AsyncIterator[bytes]:
    coming: asyncio.Future[Mapping[str, Any]] = asyncio.ensure_future(anext(messages))
    try:
        await asyncio.sleep(0)  # whoever reads this line misses no message after it
        yield b": listening\n\n"
        while True:
            done, _ = await asyncio.wait({coming}, timeout=silence_s)
            if not done:
                yield b": \n\n"
                continue
            try:
                message = coming.result()
            except StopAsyncIteration:
                return
            coming = asyncio.ensure_future(anext(messages))
            yield f"data: {json.dumps(message)}\n\n".encode()
    finally:
        await end(coming)
