"""WebRTC signalling."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_request, tag, validate_response

from gateway.http import bodies
from gateway.http.auth import Access, needs
from gateway.http.json_body import json_object
from gateway.http.openapi import answers, refuses
from gateway.http.validation import Text, check
from gateway.stream.streams import Streams
from gateway.webrtc.sessions import Join, Sessions


class _Offer(BaseModel):
    sdp: str
    type: str
    initialParameters: dict[str, Any] | None = None  # noqa: N815 - the wire's name
    streamId: Annotated[str, Field(max_length=64)] | None = None  # noqa: N815 - the wire's name
    role: Literal["viewer", "controller"] = "viewer"
    publish: bool = False
    label: Annotated[Text, Field(max_length=64)] = "browser"


_OFFER: TypeAdapter[_Offer] = TypeAdapter(_Offer)
_CANDIDATES: TypeAdapter[bodies.CandidatesBody] = TypeAdapter(bodies.CandidatesBody)


def webrtc_blueprint(streams: Streams, sessions: Sessions, access: Access) -> Blueprint:
    bp = Blueprint("webrtc", __name__, url_prefix="/api/v1/webrtc/offer")

    @bp.post("")
    @needs("view")
    @tag(["webrtc"])
    @document_request(bodies.OfferBody)
    @refuses(400, 404, 409, 422, 503)
    @validate_response(bodies.AnswerBody)
    async def offer() -> bodies.AnswerBody:
        """Open a session, with a stream of its own, or to see the one that `streamId` names.

        The answer contains all candidates of the server.
        """
        body = check(_OFFER, await json_object(request), "body")
        if body.streamId is None:
            access.require("all")
            answer = await sessions.offer(body.sdp, body.type, body.initialParameters)
        else:
            join = Join(streams.find(body.streamId), body.role, body.publish, body.label)
            access.require("view" if body.role == "viewer" and not body.publish else "drive", join.stream)
            answer = await sessions.join(body.sdp, body.type, join, body.initialParameters)
        return bodies.AnswerBody(
            sdp=answer.sdp,
            type="answer",
            sessionId=answer.session_id,
            streamId=answer.stream_id,
            role=answer.role,
        )

    @bp.patch("/<session_id>")
    @needs("view")
    @tag(["webrtc"])
    @document_request(bodies.CandidatesBody)
    @answers(204, description="added, or of no use")
    @refuses(400, 404)
    async def trickle(session_id: str) -> tuple[str, int]:
        """Add ICE candidates of the peer."""
        body = check(_CANDIDATES, await json_object(request), "body")
        await sessions.add_candidates(session_id, [entry.model_dump() for entry in body.candidates])
        return "", 204

    @bp.delete("/<session_id>")
    @needs("view")
    @tag(["webrtc"])
    @answers(204, description="closed")
    @refuses(404)
    async def close(session_id: str) -> tuple[str, int]:
        """Close a session; unknown ids are fine."""
        await sessions.delete(session_id)
        return "", 204

    return bp
