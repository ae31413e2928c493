"""Status and download of model files."""

from typing import Any

from pydantic import BaseModel, Field, StrictBool, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_querystring, document_request, tag, validate_response

from gateway.access.auth import operators_only
from gateway.errors import ApiError, Problem, ValidationFailed
from gateway.files.models.models import Models
from gateway.http.bodies import Message
from gateway.http.json_body import json_object
from gateway.http.openapi import refuses
from gateway.http.validation import check
from gateway.serving.interface import Serving, ServingError
from streaming.specs import SPECS


class ModelsQuery(BaseModel):
    pipeline_id: str = Field(examples=["longlive"])


class DownloadBody(BaseModel):
    pipeline_id: str = Field(examples=["longlive"])
    anyway: StrictBool = Field(False, description="also what no GPU of this server has room for (ours)")


class ModelsStatusBody(BaseModel):
    downloaded: bool
    progress: dict[str, Any] | None = Field(
        description="is_downloading, percentage and current_artifact (of the current repository), "
        "total_percentage, downloaded_mb, total_mb, stage; error after a failure"
    )
    engines_ready: bool
    missing: list[str] = Field(description="paths relative to the models directory")


_DOWNLOAD: TypeAdapter[DownloadBody] = TypeAdapter(DownloadBody)


def models_blueprint(models: Models, serving: Serving) -> Blueprint:
    bp = Blueprint("models", __name__, url_prefix="/api/v1/models")

    @bp.get("/status")
    @tag(["models"])
    @document_querystring(ModelsQuery)
    @refuses(404, 422)
    @validate_response(ModelsStatusBody)
    async def status() -> dict[str, Any]:
        """Whether a pipeline's files are there, and how far their download is."""
        pipeline_id = request.args.get("pipeline_id")
        if pipeline_id is None:
            problem = Problem(type="missing", loc=["query", "pipeline_id"], msg="Field required", input=None)
            raise ValidationFailed([problem])
        return await models.status(pipeline_id)

    @bp.post("/download")
    @operators_only()
    @tag(["models"])
    @document_request(DownloadBody)
    @refuses(400, 404, 409, 422)
    @validate_response(Message)
    async def download() -> Message:
        """Begin to download a pipeline's files; poll the status until `downloaded` or `progress.error`."""
        body = check(_DOWNLOAD, await json_object(request), "body")
        if not body.pipeline_id:
            raise ApiError(400, "pipeline_id is required")
        if not body.anyway:
            await _require_room(serving, body.pipeline_id)
        models.start(body.pipeline_id)
        return Message(message=f"Model download started for {body.pipeline_id}")

    return bp


async def _require_room(serving: Serving, pipeline_id: str) -> None:
    """Raises ApiError 400 for weights that the GPU could not hold at any of the usual sizes."""
    spec = SPECS.get(pipeline_id)
    try:
        room = None if spec is None or not serving.on_gpu else await serving.room(spec)
    except ServingError:  # a damaged file that a download mends
        return
    refusal = None if room is None else room.refusal(pipeline_id, "send 'anyway': true")
    if refusal is not None:
        raise ApiError(400, refusal)
