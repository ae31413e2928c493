"""Cue lists: kept by name, played to a stream (streams.md 5.6)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_request, tag, validate_response

from gateway.access.auth import needs, operators_only
from gateway.http.json_body import json_object
from gateway.http.openapi import answers, refuses
from gateway.http.validation import Text, check
from gateway.recording.cues import CueList, Cues
from gateway.stream.streams import Streams


class CueNames(BaseModel):
    cues: list[str]


class CueLines(BaseModel):
    lines: list[dict[str, Any]] = Field(description="as they were put")


class PlayBody(BaseModel):
    label: Annotated[Text, Field(max_length=200)] | None = Field(
        None, description="of the lines to play; all of them without it"
    )


class CuePlayed(BaseModel):
    status: Literal["playing"]
    errors: list[dict[str, Any]] = Field(description="what will not be set, since the stream cannot have it")


_PLAY: TypeAdapter[PlayBody] = TypeAdapter(PlayBody)


def cues_blueprint(cues: Cues, streams: Streams) -> Blueprint:
    bp = Blueprint("cues", __name__, url_prefix="/api/v1")

    @bp.get("/cues")
    @tag(["cues"])
    @validate_response(CueNames)
    async def names() -> CueNames:
        """The names of all cue lists."""
        return CueNames(cues=await cues.names())

    @bp.get("/cues/<name>")
    @tag(["cues"])
    @refuses(404, 409)
    @validate_response(CueLines)
    async def one(name: str) -> dict[str, Any]:
        """A cue list."""
        return (await cues.get(name)).plain()

    @bp.put("/cues/<name>")
    @operators_only()
    @tag(["cues"])
    @document_request(CueList)
    @refuses(404, 507)
    @validate_response(CueLines)
    async def put(name: str) -> dict[str, Any]:
        """Keep a cue list under a name, in place of the one before. It survives a restart of the server."""
        return (await cues.put(name, await json_object(request))).plain()

    @bp.delete("/cues/<name>")
    @operators_only()
    @tag(["cues"])
    @answers(204, description="removed")
    @refuses(404, 507)
    async def delete(name: str) -> tuple[str, int]:
        """Remove a cue list. What it has set stays."""
        await cues.delete(name)
        return "", 204

    @bp.post("/streams/<stream_id>/cues/<name>")
    @needs("drive")
    @tag(["cues"])
    @document_request(PlayBody)
    @refuses(404, 409)
    @validate_response(CuePlayed, 202)
    async def play(stream_id: str, name: str) -> tuple[CuePlayed, int]:
        """Set what a cue list says: with the next beat where changes wait for it, else at once."""
        body = check(_PLAY, await json_object(request, or_empty=True), "body")
        errors = await cues.play(streams.find(stream_id), name, body.label)
        return CuePlayed(status="playing", errors=[dict(error) for error in errors]), 202

    return bp
