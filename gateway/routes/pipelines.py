"""Load, unload and describe pipelines."""

from quart import Blueprint, request
from quart_schema import document_request, tag, validate_response

from gateway.access.auth import Access, operators_only
from gateway.errors import ApiError, ValidationFailed
from gateway.http import bodies
from gateway.http.json_body import json_object
from gateway.http.openapi import refuses
from gateway.pipelines.load_service import LoadService
from gateway.pipelines.schemas import pipeline_schemas
from gateway.pipelines.state import Pipelines


def pipelines_blueprint(pipelines: Pipelines, loader: LoadService, access: Access) -> Blueprint:
    bp = Blueprint("pipelines", __name__, url_prefix="/api/v1")

    @bp.post("/pipeline/load")
    @tag(["pipeline"])
    @document_request(bodies.LoadBody)
    @refuses(400, 403, 404, 422)
    @validate_response(bodies.LoadAccepted)
    async def load() -> bodies.LoadAccepted:
        """Begin to load a pipeline; poll the status until it is `loaded` or `error`."""
        refusal = None if access.may_change_server(request) else access.refusal(pipelines.held_id())
        try:
            accepted = await loader.request(await json_object(request), refusal=refusal)
        except (ApiError, ValidationFailed) as error:
            pipelines.reject(str(error))
            raise
        return bodies.LoadAccepted.model_validate(accepted)

    @bp.get("/pipeline/status")
    @tag(["pipeline"])
    @validate_response(bodies.PipelineStatus)
    async def status() -> bodies.PipelineStatus:
        """What is loaded or loading."""
        locked = not access.may_change_server(request)
        return bodies.PipelineStatus.model_validate({**pipelines.status(), "locked": locked})

    @bp.post("/pipeline/unload")
    @operators_only()
    @tag(["pipeline"])
    @validate_response(bodies.Message)
    async def unload() -> bodies.Message:
        """Unload what is loaded, cancel what is loading; streams end."""
        await pipelines.unload()
        return bodies.Message(message="Pipeline unloaded")

    @bp.get("/pipelines/schemas")
    @tag(["pipeline"])
    @validate_response(bodies.PipelineSchemas)
    async def schemas() -> bodies.PipelineSchemas:
        """All pipelines: modes, defaults, parameters, and whether they can be loaded here."""
        return bodies.PipelineSchemas.model_validate(pipeline_schemas(pipelines.serving.availability))

    return bp
