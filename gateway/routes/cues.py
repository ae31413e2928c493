"""Cue lists: kept by name, played to a stream (streams.md 5.6)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_request, tag, validate_response

from gateway.access.auth import needs, operators_only
from gateway.http.json_body import json_object, json_text
from gateway.http.openapi import answers, refuses
from gateway.http.validation import Integer, Text, check
from gateway.show.cues import CueList, Cues
from gateway.stream.streams import Streams


class CueNames(BaseModel):
    cues: list[str]


class CueLines(BaseModel):
    model_config = ConfigDict(extra="allow")  # the list's own settings, where they are not the usual ones

    lines: list[dict[str, Any]] = Field(description="as they were put")


class PlayBody(BaseModel):
    label: Annotated[Text, Field(max_length=200)] | None = Field(
        None, description="of the lines to play; all of them without it"
    )
    begin: Annotated[Integer, Field(ge=0)] | None = Field(
        None, description="number of the line to begin with, from 0"
    )


class CuePlayed(BaseModel):
    status: Literal["playing"]
    errors: list[dict[str, Any]] = Field(description="what will not be set, since the stream cannot have it")


class CuesPlaying(BaseModel):
    state: Literal["playing", "stopped"]
    list: str | None = Field(None, description="name of the list that plays by the clock or the beat")
    line: int | None = Field(None, description="number of the line that was set last, from 0")
    label: str | None = None
    round: int | None = Field(None, description="of a list that loops, from 0")


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
        return (await cues.put(name, await json_text(request))).plain()

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
        """Play a cue list: with the next beat where changes wait for it, else at once.

        One with the clock `time` or `beat` plays on the server, takes the place of the one before and keeps
        the stream until it ends.
        """
        body = check(_PLAY, await json_object(request, or_empty=True), "body")
        errors = await cues.play(streams.find(stream_id), name, body.label, body.begin)
        return CuePlayed(status="playing", errors=[dict(error) for error in errors]), 202

    @bp.get("/streams/<stream_id>/cues")
    @needs("view")
    @tag(["cues"])
    @refuses(404)
    @validate_response(CuesPlaying)
    async def playing(stream_id: str) -> dict[str, Any]:
        """Which list plays to a stream, and where in it we are."""
        return cues.playing(streams.find(stream_id))

    @bp.delete("/streams/<stream_id>/cues")
    @needs("drive")
    @tag(["cues"])
    @answers(204, description="nothing plays")
    @refuses(404)
    async def stop(stream_id: str) -> tuple[str, int]:
        """End the list that plays; what it has set stays."""
        cues.stop(streams.find(stream_id))
        return "", 204

    return bp
