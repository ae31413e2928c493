"""WebRTC signalling."""

import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, abort, request
from quart_schema import document_querystring, document_request, tag, validate_response

from gateway.access.auth import Access, needs
from gateway.fleet.forwarding import Forwarding
from gateway.http import bodies
from gateway.http.json_body import json_object
from gateway.http.openapi import answers, refuses
from gateway.http.query import query_int
from gateway.http.validation import Number, Text, check
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
    grace_s: Annotated[Number, Field(ge=0, le=bodies.MAX_GRACE_S)] = 0.0


class _CloseQuery(BaseModel):
    grace_s: Annotated[int, Field(ge=0, le=bodies.MAX_GRACE_S)] = Field(
        0, description="in place of the offer's: the stream goes on for so long without whoever leaves"
    )


_ROOT: Final = "/api/v1/webrtc/offer"
_OFFER: TypeAdapter[_Offer] = TypeAdapter(_Offer)
_CANDIDATES: TypeAdapter[bodies.CandidatesBody] = TypeAdapter(bodies.CandidatesBody)


def webrtc_blueprint(
    streams: Streams, sessions: Sessions, access: Access, forwarding: Forwarding
) -> Blueprint:
    bp = Blueprint("webrtc", __name__, url_prefix=_ROOT)

    @bp.post("")
    @needs("view", foreign=True)
    @tag(["webrtc"])
    @document_request(bodies.OfferBody)
    @refuses(400, 404, 409, 422, 429, 503)
    @validate_response(bodies.AnswerBody)
    async def offer() -> tuple[bodies.AnswerBody, int, dict[str, str]]:
        """Open a session, with a stream of its own, or to see the one that `streamId` names.

        The answer contains all candidates of the server.
        """
        given = await json_object(request)
        body = check(_OFFER, given, "body")
        if body.streamId is not None:
            passed = await forwarding.pass_on(body.streamId, json.dumps(given).encode())
            if passed is not None:
                abort(passed)
        access.require("view")
        if body.streamId is None:
            access.require("all")
            answer = await sessions.offer(body.sdp, body.type, body.initialParameters, body.grace_s)
        else:
            join = Join(streams.find(body.streamId), body.role, body.publish, body.label, body.grace_s)
            access.require("view" if body.role == "viewer" and not body.publish else "drive", join.stream)
            answer = await sessions.join(body.sdp, body.type, join, body.initialParameters)
        body_of_answer = bodies.AnswerBody(
            sdp=answer.sdp,
            type="answer",
            sessionId=answer.session_id,
            streamId=answer.stream_id,
            role=answer.role,
        )
        return body_of_answer, 200, {"Location": f"{request.root_path}{_ROOT}/{answer.session_id}"}

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
    @document_querystring(_CloseQuery)
    @answers(204, description="closed")
    @refuses(404, 422)
    async def close(session_id: str) -> tuple[str, int]:
        """Close a session; unknown ids are fine."""
        grace_s = query_int("grace_s", 0, minimum=0, maximum=bodies.MAX_GRACE_S)
        await sessions.delete(session_id, float(grace_s))
        return "", 204

    return bp
