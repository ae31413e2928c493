"""Publications over REST: streams that are sent to media servers by WHIP."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter
from pydantic_core import PydanticCustomError
from quart import Blueprint, request
from quart_schema import document_request, document_response, tag

from gateway.access.auth import operators_only
from gateway.http import bodies
from gateway.http.json_body import json_object
from gateway.http.openapi import answers, refuses
from gateway.http.validation import check
from gateway.publications.publications import Publications
from gateway.publications.target import Codec, Target, check_token, check_url
from gateway.stream.streams import Streams

_ROOT = "/api/v1/streams/<stream_id>/publications"
_REFUSAL = "Watch the stream by WHEP, or share its page; only its operator sends it to other servers"


def _checked(check: Callable[[str], None]) -> AfterValidator:
    def validate(text: str) -> str:
        try:
            check(text)
        except ValueError as error:
            raise PydanticCustomError("value_error", "{reason}", {"reason": str(error)}) from error
        return text

    return AfterValidator(validate)


class PublicationBody(BaseModel):
    """Where to, and with what."""

    url: Annotated[str, Field(max_length=2048), _checked(check_url)] = Field(
        examples=["https://sfu.example.org/studio/whip"], description="a WHIP endpoint, http or https"
    )
    token: Annotated[str, Field(max_length=8192), _checked(check_token)] | None = Field(
        None, description="sent as a bearer, and never shown"
    )
    codec: Codec = "H264"


_NEW = TypeAdapter(PublicationBody)


def publications_blueprint(publications: Publications, streams: Streams) -> Blueprint:
    bp = Blueprint("publications", __name__)

    @bp.post(_ROOT)
    @operators_only(_REFUSAL)
    @tag(["streams"])
    @document_request(PublicationBody)
    @refuses(404, 503)
    @document_response(bodies.PublicationObject, 201)
    async def create(stream_id: str) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Send a stream to a media server by WHIP, until it is deleted or the stream ends."""
        stream = streams.find(stream_id)
        body = check(_NEW, await json_object(request), "body")
        publication = publications.begin(stream, Target(body.url, body.token, body.codec))
        location = f"{request.root_path}/api/v1/streams/{stream.id}/publications/{publication.id}"
        return publication.describe(), 201, {"Location": location}

    @bp.get(_ROOT)
    @operators_only(_REFUSAL)
    @tag(["streams"])
    @refuses(404)
    @document_response(bodies.PublicationList)
    async def every(stream_id: str) -> dict[str, Any]:
        """Where a stream is sent to, and what becomes of it."""
        stream = streams.find(stream_id)
        return {"publications": [each.describe() for each in publications.of(stream)]}

    @bp.delete(f"{_ROOT}/<publication_id>")
    @operators_only(_REFUSAL)
    @tag(["streams"])
    @refuses(404)
    @answers(204, description="ended, here and at the media server")
    async def delete(stream_id: str, publication_id: str) -> tuple[str, int]:
        """Send a stream there no more."""
        await publications.find(streams.find(stream_id), publication_id).close()
        return "", 204

    return bp
