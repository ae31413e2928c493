"""Looks and MIDI mappings: kept in order, recalled, exported and imported."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_request, tag, validate_response

from gateway.access.auth import needs, operators_only
from gateway.http.json_body import json_object, json_text
from gateway.http.openapi import answers, refuses
from gateway.http.validation import Integer, check
from gateway.show.looks import Look, LookBody, LookBook, Looks, MidiMapping, Seconds
from gateway.stream.streams import Streams


class MoveBody(BaseModel):
    to: Annotated[Integer, Field(ge=0)] = Field(description="place in the order, from 0")


class RecallBody(BaseModel):
    transition_s: Seconds | None = Field(None, description="in place of the look's own")


class Midi(BaseModel):
    midi: list[MidiMapping]


class Recalled(BaseModel):
    status: Literal["recalled"]
    errors: list[dict[str, Any]] = Field(description="what will not be set, since the stream cannot have it")


_MOVE: TypeAdapter[MoveBody] = TypeAdapter(MoveBody)
_RECALL: TypeAdapter[RecallBody] = TypeAdapter(RecallBody)


def looks_blueprint(looks: Looks, streams: Streams) -> Blueprint:
    bp = Blueprint("looks", __name__, url_prefix="/api/v1")

    @bp.get("/looks")
    @tag(["looks"])
    @refuses(409)
    @validate_response(LookBook)
    async def export() -> LookBook:
        """All looks in order, and the MIDI mappings: what can be put back."""
        return await looks.all()

    @bp.put("/looks")
    @operators_only()
    @tag(["looks"])
    @document_request(LookBook)
    @refuses(507)
    @validate_response(LookBook)
    async def replace() -> LookBook:
        """Import: in the place of all looks and mappings. What is wrong is told with its line."""
        return await looks.replace_all(await json_text(request))

    @bp.get("/looks/<name>")
    @tag(["looks"])
    @refuses(404, 409)
    @validate_response(Look)
    async def one(name: str) -> Look:
        """A look, by its name or its number in the order, from 1."""
        return (await looks.all()).find(name)

    @bp.put("/looks/<name>")
    @operators_only()
    @tag(["looks"])
    @document_request(LookBody)
    @refuses(404, 409, 507)
    @validate_response(Look)
    async def put(name: str) -> Look:
        """Keep a look, in the place of the one of that name or as the last. It survives a restart."""
        return await looks.put(name, await json_text(request))

    @bp.delete("/looks/<name>")
    @operators_only()
    @tag(["looks"])
    @answers(204, description="removed")
    @refuses(404, 409, 507)
    async def delete(name: str) -> tuple[str, int]:
        """Remove a look."""
        await looks.delete(name)
        return "", 204

    @bp.post("/looks/<name>/move")
    @operators_only()
    @tag(["looks"])
    @document_request(MoveBody)
    @refuses(404, 409, 507)
    @validate_response(LookBook)
    async def move(name: str) -> LookBook:
        """Put a look at another place in the order, and so under another number key."""
        body = check(_MOVE, await json_object(request), "body")
        return await looks.move(name, body.to)

    @bp.get("/midi")
    @tag(["looks"])
    @refuses(409)
    @validate_response(Midi)
    async def mappings() -> Midi:
        """Which knobs, faders and keys of a MIDI controller move what, on the page."""
        return Midi(midi=(await looks.all()).midi)

    @bp.put("/midi")
    @operators_only()
    @tag(["looks"])
    @document_request(Midi)
    @refuses(409, 507)
    @validate_response(Midi)
    async def map_midi() -> Midi:
        """Keep MIDI mappings in the place of all before."""
        return Midi(midi=(await looks.put_midi(await json_text(request))).midi)

    @bp.post("/streams/<stream_id>/looks/<name>")
    @needs("drive")
    @tag(["looks"])
    @document_request(RecallBody)
    @refuses(404, 409)
    @validate_response(Recalled, 202)
    async def recall(stream_id: str, name: str) -> tuple[Recalled, int]:
        """Move a stream to a look: with the next beat where changes wait for it, else at once."""
        body = check(_RECALL, await json_object(request, or_empty=True), "body")
        errors = await looks.recall(streams.find(stream_id), name, body.transition_s)
        return Recalled(status="recalled", errors=[dict(error) for error in errors]), 202

    return bp
