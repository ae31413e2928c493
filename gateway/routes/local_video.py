"""Outputs of streams to other programs of this machine and its network."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_request, tag, validate_response

from gateway.access.auth import needs, operators_only
from gateway.http import bodies
from gateway.http.json_body import json_object
from gateway.http.openapi import refuses
from gateway.http.validation import Text, check
from gateway.local_video.service import LocalVideo
from gateway.stream.streams import Streams


class _Sink(BaseModel):
    enabled: StrictBool
    name: Annotated[Text, Field(max_length=256)] | None = None


_SINK: Any = TypeAdapter(_Sink)


def local_video_blueprint(local_video: LocalVideo, streams: Streams) -> Blueprint:
    bp = Blueprint("local_video", __name__, url_prefix="/api/v1")

    @bp.put("/streams/<stream_id>/sinks/<kind>")
    @needs("drive")
    @tag(["streams"])
    @document_request(bodies.LocalSinkBody)
    @refuses(400, 404)
    @validate_response(bodies.LocalSinkState)
    async def set_sink(stream_id: str, kind: str) -> bodies.LocalSinkState:
        """Show a stream to other programs by `ndi`, `spout` or `syphon`, or no more."""
        wish: _Sink = check(_SINK, await json_object(request), "body")
        stream = streams.find(stream_id)
        sink = await local_video.set_sink(stream, kind, wish.enabled, wish.name)
        return bodies.LocalSinkState(enabled=sink is not None, **(sink.info if sink else {"kind": kind}))

    @bp.get("/local-video/<kind>/senders")
    @operators_only("What else its network shows is its operator's matter")
    @tag(["streams"])
    @refuses(400, 404)
    @validate_response(bodies.LocalSenders)
    async def senders(kind: str) -> bodies.LocalSenders:
        """Names from which a stream's input can be had now by `ndi`, `spout` or `syphon`; takes a second."""
        return bodies.LocalSenders(senders=await local_video.senders(kind))

    return bp
