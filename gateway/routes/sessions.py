"""Live sessions over REST: numbers, a snapshot, parameters (api.md 13)."""

from pydantic import BaseModel, Field
from quart import Blueprint, Response, request
from quart_schema import document_querystring, document_request, tag, validate_response

from gateway.access.auth import needs, operators_only
from gateway.errors import ApiError
from gateway.http import bodies
from gateway.http.json_body import json_object
from gateway.http.live import still, video
from gateway.http.openapi import answers, refuses
from gateway.http.query import query_int
from gateway.serving.interface import Serving
from gateway.stream.encoding.transport_stream import CONTENT_TYPE as TRANSPORT_STREAM
from gateway.stream.stream import Stream
from gateway.stream.streams import HEADLESS, Streams
from gateway.webrtc.sessions import Sessions

_MIB = 1 << 20
_NO_BROWSER = "The stream without a browser is its operator's"
_OWN = "Ask for your own stream, at /api/v1/session/SESSION_ID/{}"


class FrameQuery(BaseModel):
    quality: int = Field(85, ge=1, le=100, description="of the JPEG")


def sessions_blueprint(streams: Streams, sessions: Sessions, serving: Serving) -> Blueprint:
    bp = Blueprint("sessions", __name__, url_prefix="/api/v1/session")

    @bp.get("/metrics")
    @operators_only(_OWN.format("metrics"))
    @tag(["session"])
    @validate_response(bodies.SessionMetrics)
    async def metrics() -> bodies.SessionMetrics:
        """Frame counts, rates and chunk times of all sessions; memory of GPU 0."""
        memory = await serving.gpu_memory_bytes()
        used, total = (None, None) if memory is None else (memory[0] / _MIB, memory[1] / _MIB)
        gpu = {"vram_allocated_mb": used, "vram_reserved_mb": used, "vram_total_mb": total}
        return bodies.SessionMetrics(sessions=sessions.metrics(), gpu=gpu)

    @bp.get("/frame")
    @operators_only(_OWN.format("frame"))
    @tag(["session"])
    @document_querystring(FrameQuery)
    @answers(200, "image/jpeg", description="a picture")
    @refuses(404, 422)
    async def frame() -> Response:
        """The last picture of the newest session as JPEG; `quality` 1 to 100."""
        quality = query_int("quality", 85, minimum=1, maximum=100)
        public = (stream.output for stream in streams if stream.tokens is None)
        images = [output.last for output in public if output.last is not None]
        if not images:
            raise ApiError(404, "No frame available: no session has shown a picture yet")
        return await still(images[-1], quality)

    _add_headless(bp, streams)

    @bp.get("/parameters")
    @operators_only(_OWN.format("parameters"))
    @tag(["session"])
    @validate_response(bodies.SessionParameters)
    async def parameters() -> bodies.SessionParameters:
        """Effective parameters of the newest session; empty without one."""
        newest = streams.newest()
        return bodies.SessionParameters(parameters={} if newest is None else newest.state.effective)

    @bp.post("/parameters")
    @operators_only("Change your own stream at /api/v1/session/SESSION_ID/parameters, not all")
    @tag(["session"])
    @document_request(bodies.ParametersBody)
    @refuses(400)
    @validate_response(bodies.ParametersApplied)
    async def update() -> bodies.ParametersApplied:
        """Change parameters of all live sessions, as the data channel does."""
        values = await json_object(request)
        if not values:
            raise ApiError(400, "No parameters given: send at least one")
        return bodies.ParametersApplied.model_validate(await streams.update_all(values))

    return bp


def _add_headless(bp: Blueprint, streams: Streams) -> None:
    """One stream without a browser, in Scope's words; `/api/v1/streams` can do all of it, and more."""
    started: list[Stream] = []

    @bp.post("/start")
    @operators_only(_NO_BROWSER)
    @tag(["session"])
    @document_request(bodies.ParametersBody)
    @refuses(400, 409, 503)
    @validate_response(bodies.HeadlessSession)
    async def start() -> bodies.HeadlessSession:
        """Make a stream that generates for nobody, with these parameters, until `/stop`."""
        values = await json_object(request, or_empty=True)
        if started and streams.get(started[0].id) is started[0]:
            raise ApiError(409, f"Session {started[0].id} runs already: stop it first")
        stream = await streams.create(parameters=values, kept=True)
        started[:] = [stream]
        stream.always_run()
        return bodies.HeadlessSession(status="started", sessionId=stream.id)

    @bp.post("/stop")
    @operators_only(_NO_BROWSER)
    @tag(["session"])
    @validate_response(bodies.HeadlessStatus)
    async def stop() -> bodies.HeadlessStatus:
        """End it; nothing to end is fine."""
        for stream in started:
            await streams.end(stream, "it was stopped")
        started.clear()
        return bodies.HeadlessStatus(status="stopped")

    @bp.get("/output.ts")
    @operators_only(_NO_BROWSER)
    @needs("view", HEADLESS)
    @tag(["session"])
    @answers(200, TRANSPORT_STREAM, description="H.264, as long as the stream lives")
    @refuses(404, 503)
    async def transport() -> Response:
        """Video of the newest stream that no browser watches, for players that open an address."""
        stream = streams.find(HEADLESS)
        streams.require_place(stream)
        return video(stream)
