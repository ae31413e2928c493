"""Streams over REST: made, changed, looked at and listened to without a browser (streams.md 1.6)."""

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

import segno
from pydantic import BaseModel, Field, StrictBool, TypeAdapter
from quart import Blueprint, Response, request
from quart.blueprints import BlueprintSetupState
from quart_schema import document_querystring, document_request, document_response, tag

from gateway.access.auth import Access, needs, operators_only
from gateway.access.origins import OriginPolicy
from gateway.errors import ApiError
from gateway.http import bodies
from gateway.http.json_body import json_object
from gateway.http.live import NO_STORE, still, video
from gateway.http.openapi import answers, refuses
from gateway.http.query import query_int
from gateway.http.validation import Number, check
from gateway.stream.encoding.transport_stream import CONTENT_TYPE as TRANSPORT_STREAM
from gateway.stream.events import listen
from gateway.stream.openers import Openers
from gateway.stream.pictures.jpegs import BOUNDARY, MAX_FPS, Jpegs, part
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams

_ROOT = "/api/v1/streams"


class StreamBody(BaseModel):
    """What a stream is made of; everything has a default."""

    name: Annotated[str, Field(max_length=64)] | None = Field(None, examples=["main", "stage-left"])
    parameters: dict[str, Any] = Field({}, description="as an offer's initialParameters")
    drivers: Literal["one", "many"] = Field("one", description="how many people may control it at once")
    run: Literal["watched", "always"] = Field("watched", description="whether it generates for nobody")
    source: dict[str, Any] | None = Field(None, description="as the body of PUT source")
    lease_s: Annotated[Number, Field(gt=0, le=30 * 86400)] | None = Field(
        None,
        description="how long it lives when nobody holds or sees it; null: until DELETE",
    )
    private: StrictBool = Field(
        False, description="whether it has tokens of its own, which are in the answer"
    )


class DriverBody(BaseModel):
    """Who is to drive; null: nobody, so that the next one who asks does."""

    sessionId: str | None  # noqa: N815 - the wire's name


class SourceBody(BaseModel, extra="allow"):
    """Where input pictures come from: a `file` (with the `path` of an asset), `none`, ..."""

    kind: str = Field(max_length=40, examples=["file", "none"])


class FrameQuery(BaseModel):
    quality: int = Field(85, ge=1, le=100, description="of the JPEG")


class MjpegQuery(FrameQuery):
    fps: int = Field(10, ge=1, le=MAX_FPS, description="pictures a second, at most")


class CodeQuery(BaseModel):
    role: Literal["viewer", "controller"] = Field("viewer", description="of whoever opens the link")


_CODE = TypeAdapter(CodeQuery)
_NEW = TypeAdapter(StreamBody)
_DRIVER = TypeAdapter(DriverBody)
_SOURCE = TypeAdapter(SourceBody)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Streams as the answers show them."""

    access: Access
    policy: OriginPolicy

    def watch_url(self, stream: Stream, role: str = "viewer") -> str:
        """A page's address for whoever is to see the stream. It opens it, if the caller may hand that on."""
        query = {"stream": stream.id}
        if role == "controller":
            query["role"] = role
        token = self.access.handed_on(stream, role)
        return f"{self._base()}/watch?{urlencode(query | ({'token': token} if token else {}))}"

    def _base(self) -> str:
        caller = self.policy.caller(request)
        return f"{'https' if caller.is_secure else 'http'}://{caller.host}{request.root_path}"

    def stream(self, stream: Stream) -> dict[str, Any]:
        base = self._base()
        name = quote(stream.id)
        body = stream.info | {
            "whip_url": f"{base}/whip/{name}",
            "whep_url": f"{base}/whep/{name}",
            "mjpeg_url": f"{base}{_ROOT}/{name}/mjpeg",
            "watch_url": self.watch_url(stream),
        }
        if stream.tokens is not None and self.access.asks_for_token and self.access.allows("all", stream):
            body["tokens"] = stream.tokens.as_dict()
        return body


def streams_blueprint(streams: Streams, openers: Openers, access: Access, policy: OriginPolicy) -> Blueprint:
    bp = Blueprint("streams", __name__, url_prefix=_ROOT)
    shown = _Shown(access, policy)
    _add_table(bp, streams, openers, shown)
    _add_parts(bp, streams, openers, shown)
    _add_views(bp, streams, shown)
    bp.record(_add_session_addresses)
    return bp


def _add_session_addresses(state: BlueprintSetupState) -> None:
    """The same for the stream of a session, at the address that names one."""
    for view, path, method in (
        ("parameters", "parameters", "GET"),
        ("update", "parameters", "PATCH"),
        ("post", "parameters", "POST"),
        ("frame", "frame", "GET"),
        ("metrics", "metrics", "GET"),
    ):
        state.app.add_url_rule(
            f"/api/v1/session/<stream_id>/{path}",
            endpoint=f"streams.{view}_of_session",
            view_func=state.app.view_functions[f"streams.{view}"],
            methods=[method],
        )


def _add_table(bp: Blueprint, streams: Streams, openers: Openers, shown: _Shown) -> None:
    @bp.post("")
    @operators_only("It makes a stream for whoever sends an offer; only its operator makes others")
    @tag(["streams"])
    @document_request(StreamBody)
    @refuses(400, 409, 503)
    @document_response(bodies.StreamObject, 201)
    async def create() -> tuple[dict[str, Any], int, dict[str, str]]:
        """Make a stream that lives without a browser, until it is deleted."""
        body = check(_NEW, await json_object(request, or_empty=True), "body")
        stream = await streams.create(
            body.name,
            parameters=body.parameters,
            kept=True,
            linger_s=body.lease_s or 0.0,
            drivers=body.drivers,
            private=body.private,
        )
        try:
            if body.source is not None:
                await openers.attach(stream, check(_SOURCE, body.source, "body", "source").model_dump())
        except BaseException:
            await stream.close("its source could not be had")
            raise
        if body.run == "always":
            stream.always_run()
        answer = shown.stream(stream)
        if stream.tokens is not None:
            answer["tokens"] = stream.tokens.as_dict()
        return answer, 201, {"Location": f"{request.root_path}{_ROOT}/{stream.id}", **NO_STORE}

    @bp.get("")
    @operators_only("Who knows a stream's id may use the stream; only its operator is told of all")
    @needs("view")
    @tag(["streams"])
    @document_response(bodies.StreamList)
    async def every() -> dict[str, Any]:
        """All streams that the caller may see, the oldest first."""
        seen = [stream for stream in streams if shown.access.allows("view", stream)]
        return {"streams": [shown.stream(stream) for stream in seen]}

    @bp.get("/<stream_id>")
    @needs("view")
    @tag(["streams"])
    @refuses(404)
    @document_response(bodies.StreamObject)
    async def one(stream_id: str) -> dict[str, Any]:
        """One stream, by its id, the session id of one of its peers, or `main`."""
        return shown.stream(streams.find(stream_id))

    @bp.delete("/<stream_id>")
    @tag(["streams"])
    @answers(204, description="ended, or unknown")
    async def delete(stream_id: str) -> tuple[str, int]:
        """End a stream; unknown ids are fine."""
        stream = streams.get(stream_id)
        if stream is not None:
            await streams.end(stream, "it was deleted")
        return "", 204


def _add_parts(bp: Blueprint, streams: Streams, openers: Openers, shown: _Shown) -> None:
    @bp.get("/<stream_id>/parameters")
    @needs("view")
    @tag(["streams"])
    @refuses(404)
    @document_response(bodies.SessionParameters)
    async def parameters(stream_id: str) -> dict[str, Any]:
        """Every parameter in force."""
        return {"parameters": streams.find(stream_id).state.effective}

    async def change(stream_id: str) -> dict[str, Any]:
        stream, values = streams.find(stream_id), await json_object(request)
        if not values:
            raise ApiError(400, "No parameters given: send at least one")
        return await streams.update([stream], values)

    @bp.patch("/<stream_id>/parameters")
    @needs("drive")
    @tag(["streams"])
    @document_request(bodies.ParametersBody)
    @refuses(400, 404)
    @document_response(bodies.ParametersApplied)
    async def update(stream_id: str) -> dict[str, Any]:
        """Change parameters, as the driver's data channel does."""
        return await change(stream_id)

    @bp.post("/<stream_id>/parameters")
    @needs("drive")
    @tag(["streams"])
    @document_request(bodies.ParametersBody)
    @refuses(400, 404)
    @document_response(bodies.ParametersApplied)
    async def post(stream_id: str) -> dict[str, Any]:
        """The same as PATCH, for clients that have no other method."""
        return await change(stream_id)

    @bp.get("/<stream_id>/metrics")
    @needs("view")
    @tag(["streams"])
    @refuses(404)
    @document_response(bodies.StreamObject)
    async def metrics(stream_id: str) -> dict[str, Any]:
        """Frame counts, rates and chunk times."""
        return streams.find(stream_id).metrics()

    @bp.post("/<stream_id>/driver")
    @tag(["streams"])
    @document_request(DriverBody)
    @refuses(404)
    @document_response(bodies.StreamObject)
    async def driver(stream_id: str) -> dict[str, Any]:
        """Put somebody who is connected as a controller in the driver's seat, or empty it."""
        stream = streams.find(stream_id)
        stream.seat.give(check(_DRIVER, await json_object(request), "body").sessionId)
        return shown.stream(stream)

    @bp.put("/<stream_id>/source")
    @needs("drive")
    @tag(["streams"])
    @document_request(SourceBody)
    @refuses(400, 404)
    @document_response(bodies.StreamObject)
    async def source(stream_id: str) -> dict[str, Any]:
        """Take input pictures from somewhere else. The old source goes on until the first new picture."""
        stream = streams.find(stream_id)
        wish = check(_SOURCE, await json_object(request), "body")
        await openers.attach(stream, wish.model_dump())
        return shown.stream(stream)

    @bp.delete("/<stream_id>/source")
    @needs("drive")
    @tag(["streams"])
    @refuses(404)
    @answers(204, description="the stream has no source")
    async def no_source(stream_id: str) -> tuple[str, int]:
        """Take no more input pictures."""
        streams.find(stream_id).stop_sources()
        return "", 204


def _add_views(bp: Blueprint, streams: Streams, shown: _Shown) -> None:
    jpegs = Jpegs()

    @bp.get("/<stream_id>/frame")
    @needs("view")
    @tag(["streams"])
    @document_querystring(FrameQuery)
    @answers(200, "image/jpeg", description="a picture")
    @refuses(404, 422)
    async def frame(stream_id: str) -> Response:
        """The last picture as JPEG."""
        quality = query_int("quality", 85, minimum=1, maximum=100)
        image = streams.find(stream_id).output.last
        if image is None:
            raise ApiError(404, "No frame available: the stream has not shown a picture yet")
        return await still(image, quality)

    @bp.get("/<stream_id>/control")
    @needs("view")
    @tag(["streams"])
    @document_querystring(FrameQuery)
    @answers(200, "image/jpeg", description="a picture")
    @refuses(404, 422)
    async def control(stream_id: str) -> Response:
        """The newest picture of the control video as JPEG: what VACE is shown of the input."""
        quality = query_int("quality", 85, minimum=1, maximum=100)
        pictures = streams.find(stream_id).worker.control
        if pictures is None:
            raise ApiError(404, "No control picture available: VACE takes no input video now")
        return await still(pictures[-1], quality)

    @bp.get("/<stream_id>/mjpeg")
    @needs("view")
    @tag(["streams"])
    @document_querystring(MjpegQuery)
    @answers(200, "multipart/x-mixed-replace", description="pictures, one after another")
    @refuses(404, 422, 503)
    async def mjpeg(stream_id: str) -> Response:
        """Moving pictures for whatever shows an image by its address. Slow readers skip some."""
        quality = query_int("quality", 85, minimum=1, maximum=100)
        fps = query_int("fps", 10, minimum=1, maximum=MAX_FPS)
        stream = streams.find(stream_id)
        streams.require_place(stream)
        pictures = jpegs.sequence(stream, quality).read(fps)
        return Response(
            _parts(pictures),
            content_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}",
            headers=NO_STORE,
        )

    @bp.get("/<stream_id>/output.ts")
    @needs("view")
    @tag(["streams"])
    @answers(200, TRANSPORT_STREAM, description="H.264, as long as the stream lives")
    @refuses(404, 503)
    async def transport(stream_id: str) -> Response:
        """Video for players that open an address; encoded once for all who take H.264."""
        stream = streams.find(stream_id)
        streams.require_place(stream)
        return video(stream)

    @bp.get("/<stream_id>/qr.svg")
    @needs("view")
    @tag(["streams"])
    @document_querystring(CodeQuery)
    @answers(200, "image/svg+xml", description="a QR code")
    @refuses(404, 422)
    async def code(stream_id: str) -> Response:
        """The stream's `watch_url` as a QR code."""
        role = check(_CODE, dict(request.args), "query").role
        picture = io.BytesIO()
        url = shown.watch_url(streams.find(stream_id), role)
        segno.make(url, micro=False).save(
            picture, kind="svg", scale=4, border=2, svgclass=None, lineclass=None
        )
        return Response(picture.getvalue(), mimetype="image/svg+xml", headers=NO_STORE)

    @bp.get("/<stream_id>/events")
    @needs("view")
    @tag(["streams"])
    @answers(200, "text/event-stream", description="one JSON object an event, the messages of a data channel")
    @refuses(404)
    async def events(stream_id: str) -> Response:
        """What happens to a stream: `stream_state` first, then every change, until it ends."""
        return Response(listen(streams.find(stream_id)), content_type="text/event-stream", headers=NO_STORE)


async def _parts(pictures: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for picture in pictures:
        yield part(picture)
