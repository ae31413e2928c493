"""The server's own log."""

import asyncio

from quart import Blueprint, Response
from quart_schema import tag, validate_response

from gateway import bodies
from gateway.errors import ApiError
from gateway.logs import Logs
from gateway.query import query_int

_MAX_LINES = 1000


def logs_blueprint(logs: Logs) -> Blueprint:
    bp = Blueprint("logs", __name__, url_prefix="/api/v1/logs")

    @bp.get("/current")
    @tag(["logs"])
    async def current() -> Response:
        """The newest log file as a download."""
        found = await asyncio.to_thread(logs.read)
        if found is None:
            raise ApiError(404, "No log file found")
        name, text = found
        response = Response(text, content_type="text/plain; charset=utf-8")
        attachment = f'attachment; filename="{name.removesuffix(".log")}.txt"'
        response.headers["Content-Disposition"] = attachment
        return response

    @bp.get("/tail")
    @tag(["logs"])
    @validate_response(bodies.LogTailBody)
    async def tail() -> bodies.LogTailBody:
        """The last lines, or what came after `since_offset` bytes."""
        lines = query_int("lines", 200, minimum=1, maximum=_MAX_LINES)
        offset = query_int("since_offset", 0, minimum=0)
        found = await asyncio.to_thread(logs.tail, lines, offset)
        return bodies.LogTailBody(lines=found.lines, offset=found.offset)

    return bp
