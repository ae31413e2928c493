"""WebRTC signalling."""

from typing import Any

from pydantic import BaseModel, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_request, tag, validate_response

from gateway.http import bodies
from gateway.http.json_body import json_object
from gateway.http.openapi import answers, refuses
from gateway.http.validation import check
from gateway.webrtc.sessions import Sessions


class _Offer(BaseModel):
    sdp: str
    type: str
    initialParameters: dict[str, Any] | None = None  # noqa: N815 - the wire's name


_OFFER: TypeAdapter[_Offer] = TypeAdapter(_Offer)
_CANDIDATES: TypeAdapter[bodies.CandidatesBody] = TypeAdapter(bodies.CandidatesBody)


def webrtc_blueprint(sessions: Sessions) -> Blueprint:
    bp = Blueprint("webrtc", __name__, url_prefix="/api/v1/webrtc/offer")

    @bp.post("")
    @tag(["webrtc"])
    @document_request(bodies.OfferBody)
    @refuses(400, 422, 503)
    @validate_response(bodies.AnswerBody)
    async def offer() -> bodies.AnswerBody:
        """Open a session; the answer contains all candidates of the server."""
        body = check(_OFFER, await json_object(request), "body")
        answer = await sessions.offer(body.sdp, body.type, body.initialParameters)
        return bodies.AnswerBody(sdp=answer.sdp, type="answer", sessionId=answer.session_id)

    @bp.patch("/<session_id>")
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
    @tag(["webrtc"])
    @answers(204, description="closed")
    @refuses(404)
    async def close(session_id: str) -> tuple[str, int]:
        """Close a session; unknown ids are fine."""
        await sessions.delete(session_id)
        return "", 204

    return bp
