"""Recordings and takes (streams.md 5.1 and 5.2)."""

import asyncio
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, TypeAdapter
from quart import Blueprint, Response, request
from quart_schema import document_querystring, document_request, tag, validate_response

from gateway.access.auth import needs, operators_only
from gateway.errors import ApiError
from gateway.http.file_response import file_response
from gateway.http.json_body import json_object
from gateway.http.openapi import answers, refuses
from gateway.http.query import query_int
from gateway.http.validation import Number, Text, check, quoted
from gateway.recording.recordings import Recordings
from gateway.recording.replay import Replays, read_script
from gateway.recording.takes import Take
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams

_VIDEO = "video/mp4"
_OF_OTHERS = "Takes of all streams are its operator's; yours is at /api/v1/recordings/SESSION_ID"


class StartBody(BaseModel):
    name: Annotated[Text, Field(max_length=200)] | None = Field(None, description="what people call the take")
    quality: Literal["shared", "high"] = Field(
        "shared", description="shared: as viewers see it; high: an encoder of its own, better and dearer"
    )
    max_s: Annotated[Number, Field(gt=0)] | None = Field(None, description="longest duration in seconds")
    trim_pauses: StrictBool = Field(False, description="close the gap that a pause leaves")


class MarkBody(BaseModel):
    label: Annotated[Text, Field(max_length=200)]


class ReplayBody(BaseModel):
    take: Annotated[str, Field(max_length=140)] | None = Field(None, description="a take's id, or")
    events: list[Any] | None = Field(None, description="lines as a take's data has them")
    clock: Literal["chunk", "time"] = Field(
        "chunk",
        description="chunk: in the chunks that had them, which gives the same pictures; time: as then",
    )
    speed: Annotated[Number, Field(ge=0.1, le=10)] = Field(1.0, description="of the clock `time`")
    reset: StrictBool = Field(True, description="begin with fresh caches")


class ReplayStarted(BaseModel):
    status: Literal["replaying"]
    lines: int = Field(description="moments at which something is set")
    errors: list[dict[str, Any]] = Field(description="what will not be set, since the stream cannot have it")


class TakeBody(BaseModel):
    take: str
    name: str | None
    stream: str | None
    pipeline_id: str | None
    started_at: float | None = Field(description="Unix seconds")
    duration_s: float
    frames: int
    width: int | None
    height: int | None
    codec: str
    quality: str | None
    size_bytes: int
    parts: int = Field(description="files; another one begins when the picture size changes")
    state: Literal["recording", "done", "cut"] = Field(description="cut: by a crash, a limit or the disk")
    error: str | None


class TakesBody(BaseModel):
    takes: list[TakeBody]


class TakeData(BaseModel):
    lines: list[dict[str, Any]] = Field(description="the head, then what was asked of the stream")


class RecordingStatus(BaseModel):
    status: Literal["started", "already_recording", "stopped", "not_recording"]


class VideoQuery(BaseModel):
    part: int = Field(1, ge=1, description="of a take whose picture size changed")
    fast_start: str | None = Field(None, description="1: rewritten without fragments, for editors")


_START: TypeAdapter[StartBody] = TypeAdapter(StartBody)
_REPLAY: TypeAdapter[ReplayBody] = TypeAdapter(ReplayBody)
_MARK: TypeAdapter[MarkBody] = TypeAdapter(MarkBody)


def recordings_blueprint(recordings: Recordings, streams: Streams) -> Blueprint:
    """The routes below `/streams/ID/recordings`, and the takes."""
    bp = Blueprint("recordings", __name__, url_prefix="/api/v1")

    @bp.post("/streams/<stream_id>/recordings")
    @needs("drive")
    @tag(["recordings"])
    @document_request(StartBody)
    @refuses(404, 409, 422, 507)
    @validate_response(TakeBody, 201)
    async def start(stream_id: str) -> tuple[dict[str, Any], int]:
        """Begin a take of a stream; the stream lives on and generates while it is recorded."""
        body = check(_START, await _optional_object(), "body")
        stream = streams.find(stream_id)
        take = await recordings.start(
            stream,
            name=body.name,
            quality=body.quality,
            max_s=body.max_s,
            trim_pauses=body.trim_pauses,
        )
        return take, 201

    @bp.post("/streams/<stream_id>/recordings/stop")
    @needs("drive")
    @tag(["recordings"])
    @refuses(404, 409)
    @validate_response(TakeBody)
    async def stop(stream_id: str) -> dict[str, Any]:
        """End a stream's take; it is complete when this is answered."""
        take = await recordings.stop(streams.find(stream_id))
        if take is None:
            raise ApiError(409, f"Stream {quoted(stream_id, 64)} is not being recorded")
        return take

    @bp.post("/streams/<stream_id>/recordings/mark")
    @needs("drive")
    @tag(["recordings"])
    @document_request(MarkBody)
    @refuses(404, 409, 422)
    @validate_response(TakeBody)
    async def mark(stream_id: str) -> dict[str, Any]:
        """Write a marker beside the picture that is shown now."""
        body = check(_MARK, await json_object(request), "body")
        return recordings.mark(streams.find(stream_id), body.label)

    @bp.get("/recordings")
    @operators_only(_OF_OTHERS)
    @tag(["recordings"])
    @validate_response(TakesBody)
    async def entries() -> dict[str, Any]:
        """All takes, those that are being recorded first, then the newest first."""
        return {"takes": await recordings.entries()}

    @bp.get("/takes/<take>")
    @tag(["recordings"])
    @refuses(404)
    @validate_response(TakeBody)
    async def describe(take: str) -> dict[str, Any]:
        """One take."""
        return await recordings.describe(take)

    @bp.get("/takes/<take>/video")
    @tag(["recordings"])
    @document_querystring(VideoQuery)
    @answers(200, _VIDEO, description="the whole file")
    @answers(206, _VIDEO, description="the range of bytes that was asked for")
    @answers(304, description="not modified since")
    @refuses(404, 409, 416, 422, 507)
    async def video(take: str) -> Response:
        """A take's video."""
        await recordings.find(take)
        return await _video(recordings, take, query_int("part", 1, minimum=1))

    @bp.get("/takes/<take>/data")
    @tag(["recordings"])
    @refuses(404, 409)
    @validate_response(TakeData)
    async def data(take: str) -> dict[str, Any]:
        """What was asked of the stream while it was recorded, chunk by chunk; it can be replayed."""
        await recordings.find(take)
        return {"lines": await asyncio.to_thread(recordings.takes.lines, take)}

    @bp.delete("/takes/<take>")
    @operators_only(_OF_OTHERS)
    @tag(["recordings"])
    @answers(204, description="removed")
    @refuses(404, 409)
    async def delete(take: str) -> tuple[str, int]:
        """Remove a take and its data."""
        await recordings.delete(take)
        return "", 204

    return bp


def replays_blueprint(replays: Replays, recordings: Recordings, streams: Streams) -> Blueprint:
    bp = Blueprint("replays", __name__, url_prefix="/api/v1/streams")

    @bp.post("/<stream_id>/replay")
    @needs("drive")
    @tag(["recordings"])
    @document_request(ReplayBody)
    @refuses(404, 409, 422)
    @validate_response(ReplayStarted, 202)
    async def start(stream_id: str) -> tuple[dict[str, Any], int]:
        """Set again what was set in a take. What anybody else sets meanwhile stays theirs."""
        body = check(_REPLAY, await json_object(request), "body")
        stream = streams.find(stream_id)
        if (body.take is None) == (body.events is None):
            raise ApiError(422, "Give either take, a take's id, or events, a list of lines")
        lines = body.events or []
        if body.take is not None:
            await recordings.find(body.take)
            lines = await asyncio.to_thread(recordings.takes.lines, body.take)
        script = read_script(lines, body.clock)
        label = body.take or "events"
        errors = await replays.start(stream, script, label, body.clock, body.speed, reset=body.reset)
        return {"status": "replaying", "lines": len(script.steps), "errors": errors}, 202

    @bp.delete("/<stream_id>/replay")
    @needs("drive")
    @tag(["recordings"])
    @answers(204, description="nothing is replayed")
    @refuses(404)
    async def stop(stream_id: str) -> tuple[str, int]:
        """End a replay; what it has set stays."""
        replays.stop(streams.find(stream_id))
        return "", 204

    return bp


def scope_recordings_blueprint(recordings: Recordings, streams: Streams) -> Blueprint:
    """Scope's requests, for a session's or a stream's id."""
    bp = Blueprint("scope_recordings", __name__, url_prefix="/api/v1/recordings")

    @bp.post("/<stream_id>/start")
    @needs("drive")
    @tag(["recordings"])
    @refuses(400, 404, 507)
    @validate_response(RecordingStatus)
    async def start(stream_id: str) -> dict[str, Any]:
        """Record a session."""
        _refuse_nodes()
        stream = streams.find(stream_id)
        if recordings.is_running(stream):
            return {"status": "already_recording"}
        await recordings.start(stream)
        return {"status": "started"}

    @bp.post("/<stream_id>/stop")
    @needs("drive")
    @tag(["recordings"])
    @refuses(400, 404)
    @validate_response(RecordingStatus)
    async def stop(stream_id: str) -> dict[str, Any]:
        """End a session's recording; the take stays."""
        _refuse_nodes()
        stream = _live(streams, stream_id)
        if stream is not None and await recordings.stop(stream):
            return {"status": "stopped"}
        await _newest(recordings, stream, stream_id)
        return {"status": "not_recording"}

    @bp.get("/<stream_id>")
    @needs("drive")
    @tag(["recordings"])
    @answers(200, _VIDEO, description="the take")
    @answers(206, _VIDEO, description="the range of bytes that was asked for")
    @answers(304, description="not modified since")
    @refuses(400, 404, 416, 507)
    async def download(stream_id: str) -> Response:
        """A session's newest take. One that is being recorded is complete then, and the next one begins."""
        _refuse_nodes()
        stream = _live(streams, stream_id)
        if stream is not None and recordings.is_running(stream):
            await _begin_another(recordings, stream)
        take = await _newest(recordings, stream, stream_id)
        stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(take.head.get("started_at")))
        return await _video(recordings, take.id, 1, f"recording-{stamp}.mp4")

    return bp


async def _begin_another(recordings: Recordings, stream: Stream) -> None:
    holder = object()
    stream.hold(holder)  # the take that ends may be all that keeps the stream
    try:
        await recordings.stop(stream)
        await recordings.start(stream)
    finally:
        stream.release(holder)


def _live(streams: Streams, session_id: str) -> Stream | None:
    """The stream, unless it has ended."""
    try:
        return streams.find(session_id)
    except ApiError:
        return None


async def _newest(recordings: Recordings, stream: Stream | None, session_id: str) -> Take:
    """The newest complete take. Raises ApiError 404."""
    stream_id = session_id if stream is None else stream.id
    take = await asyncio.to_thread(recordings.takes.newest_of, stream_id)
    if take is None:
        raise ApiError(404, f"Recording not available for session {quoted(session_id, 64)}")
    return take


async def _video(recordings: Recordings, take: str, part: int, name: str | None = None) -> Response:
    """name: of the download; None: the file's."""
    path = await asyncio.to_thread(recordings.takes.part, take, part)
    name = name or path.name
    rewritten = request.args.get("fast_start") == "1" and request.method == "GET"
    if rewritten:
        path = await recordings.takes.remuxed(path)
    response = await file_response(path, _VIDEO, removed_after=rewritten)
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _refuse_nodes() -> None:
    if "node_id" in request.args:
        raise ApiError(400, "node_id is of no use here: there are no graphs, a stream has one output")


async def _optional_object() -> dict[str, Any]:
    return await json_object(request) if request.content_length else {}
