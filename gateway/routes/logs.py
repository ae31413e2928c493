"""The server's own log."""

import asyncio

from pydantic import BaseModel, Field
from quart import Blueprint, Response
from quart_schema import document_querystring, tag, validate_response

from gateway.access.auth import operators_only
from gateway.errors import ApiError
from gateway.http import bodies
from gateway.http.openapi import answers, refuses
from gateway.http.query import query_int
from gateway.logs import Logs

_MAX_LINES = 1000
_OF_THE_OPERATOR = "Its log tells of all viewers, so only its operator reads it"


class TailQuery(BaseModel):
    lines: int = Field(200, ge=1, le=_MAX_LINES)
    since_offset: int = Field(0, ge=0, description="bytes")


def logs_blueprint(logs: Logs) -> Blueprint:
    bp = Blueprint("logs", __name__, url_prefix="/api/v1/logs")

    @bp.get("/current")
    @operators_only(_OF_THE_OPERATOR)
    @tag(["logs"])
    @answers(200, "text/plain", description="the whole file")
    @refuses(404)
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
    @operators_only(_OF_THE_OPERATOR)
    @tag(["logs"])
    @document_querystring(TailQuery)
    @refuses(422)
    @validate_response(bodies.LogTailBody)
    async def tail() -> bodies.LogTailBody:
        """The last lines, or what came after `since_offset` bytes."""
        lines = query_int("lines", 200, minimum=1, maximum=_MAX_LINES)
        offset = query_int("since_offset", 0, minimum=0)
        found = await asyncio.to_thread(logs.tail, lines, offset)
        return bodies.LogTailBody(lines=found.lines, offset=found.offset)

    return bp
