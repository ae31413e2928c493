"""Bodies of requests that must not be long."""

from quart import Request

from gateway.errors import ApiError


async def limited_body(request: Request, most_bytes: int, advice: str) -> bytes:
    """A request's body. Raises ApiError 413, with `advice`, as soon as it is too long."""
    refusal = ApiError(413, f"Request body too large: {advice}")
    if (request.content_length or 0) > most_bytes:
        raise refusal
    body = bytearray()
    async for piece in request.body:
        body += piece
        if len(body) > most_bytes:
            raise refusal
    return bytes(body)
