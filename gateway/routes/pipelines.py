"""Load, unload and describe pipelines."""

from pydantic import TypeAdapter
from quart import Blueprint, request
from quart_schema import document_querystring, document_request, tag, validate_response

from gateway.access.auth import Access, operators_only
from gateway.errors import ApiError, ValidationFailed
from gateway.http import bodies
from gateway.http.json_body import json_object
from gateway.http.openapi import refuses
from gateway.http.validation import check
from gateway.pipelines.load_service import LoadService
from gateway.pipelines.schemas import pipeline_schemas
from gateway.pipelines.state import Pipelines

_ADDED_LORA: TypeAdapter[bodies.AddedLora] = TypeAdapter(bodies.AddedLora)
_REMOVED_LORA: TypeAdapter[bodies.RemovedLora] = TypeAdapter(bodies.RemovedLora)


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

    @bp.post("/pipeline/loras")
    @operators_only()
    @tag(["pipeline"])
    @document_request(bodies.AddedLora)
    @refuses(400, 403, 409, 422)
    @validate_response(bodies.LoadedLoras)
    async def add_lora() -> bodies.LoadedLoras:
        """Put a LoRA file beside the weights of what is loaded; streams go on, from their next chunk with it.

        The pipeline has to be loaded with lora_merge_mode runtime_peft.
        """
        body = check(_ADDED_LORA, await json_object(request), "body")
        adapters = await loader.add_lora(body.path, body.scale)
        return bodies.LoadedLoras(loaded_lora_adapters=adapters)

    @bp.delete("/pipeline/loras")
    @operators_only()
    @tag(["pipeline"])
    @document_querystring(bodies.RemovedLora)
    @refuses(400, 403, 404, 409, 422)
    @validate_response(bodies.LoadedLoras)
    async def remove_lora() -> bodies.LoadedLoras:
        """Take a LoRA file away that was loaded with merge_mode runtime_peft; streams go on without it."""
        query = check(_REMOVED_LORA, request.args.to_dict(), "query")
        return bodies.LoadedLoras(loaded_lora_adapters=await loader.remove_lora(query.path))

    @bp.get("/pipelines/schemas")
    @tag(["pipeline"])
    @validate_response(bodies.PipelineSchemas)
    async def schemas() -> bodies.PipelineSchemas:
        """All pipelines: modes, defaults, parameters, and whether they can be loaded here."""
        return bodies.PipelineSchemas.model_validate(pipeline_schemas(pipelines.serving.availability))

    return bp
