"""Control by OSC: what is heard, and at which addresses."""

from typing import Final

from pydantic import BaseModel
from quart import Blueprint, Response, request
from quart_schema import document_request, tag, validate_response

from gateway.access.auth import operators_only
from gateway.errors import Problem, ValidationFailed
from gateway.http import bodies
from gateway.http.events import event_stream
from gateway.http.json_body import json_object
from gateway.http.openapi import answers, refuses
from gateway.http.validation import echo
from gateway.osc.paths import all_paths, page
from gateway.osc.server import OscServer
from gateway.pipelines.state import Pipelines
from gateway.stream.streams import Streams

_OF_ALL: Final = "OSC reaches, and tells of, all streams"


class InventoryTaken(BaseModel):
    count: int


def osc_blueprint(osc: OscServer, pipelines: Pipelines, streams: Streams) -> Blueprint:
    bp = Blueprint("osc", __name__, url_prefix="/api/v1/osc")

    @bp.get("/status")
    @operators_only(_OF_ALL)
    @tag(["osc"])
    @validate_response(bodies.OscStatus)
    async def status() -> bodies.OscStatus:
        """Whether OSC is heard and where, how many messages had which result, and what was refused lately."""
        return bodies.OscStatus.model_validate(osc.status())

    @bp.put("/settings")
    @operators_only(_OF_ALL)
    @tag(["osc"])
    @document_request(bodies.OscSettings)
    @validate_response(bodies.OscStatus)
    async def settings() -> bodies.OscStatus:
        """Whether every message is logged, with its values."""
        value = (await json_object(request)).get("log_all_messages")
        if not isinstance(value, bool):
            place, text = ["body", "log_all_messages"], "Input should be a valid boolean"
            raise ValidationFailed([Problem(type="bool_type", loc=[*place], msg=text, input=echo(value))])
        osc.log_all_messages = value
        return bodies.OscStatus.model_validate(osc.status())

    @bp.get("/paths")
    @operators_only(_OF_ALL)
    @tag(["osc"])
    @validate_response(bodies.OscPaths)
    async def paths() -> bodies.OscPaths:
        """All addresses: `Runtime` reaches every stream, then one group per stream and per pipeline."""
        return bodies.OscPaths.model_validate(all_paths(pipelines, streams))

    @bp.get("/docs")
    @operators_only(_OF_ALL)
    @tag(["osc"])
    @answers(200, "text/html", description="all addresses on one page")
    async def docs() -> Response:
        """The addresses as a page to read and to copy from."""
        return Response(page(all_paths(pipelines, streams), osc.address), mimetype="text/html")

    @bp.get("/stream")
    @operators_only(_OF_ALL)
    @tag(["osc"])
    @answers(200, "text/event-stream", description="server-sent events: osc_command with key and value")
    @refuses(503)
    async def stream() -> Response:
        """What is set by OSC, message by message."""
        return event_stream(osc.listen())

    @bp.post("/inventory")
    @tag(["osc"])
    @document_request(bodies.ParametersBody)
    @validate_response(InventoryTaken)
    async def inventory() -> InventoryTaken:
        """Taken from Scope's graph editor and ignored: there are no graphs here."""
        await json_object(request)
        return InventoryTaken(count=0)

    return bp
