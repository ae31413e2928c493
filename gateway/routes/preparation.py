"""What a pipeline needs here before it streams, and getting it ready: ours, not Scope's."""

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_querystring, document_request, tag, validate_response

from gateway.access.auth import operators_only
from gateway.errors import ApiError
from gateway.files.models.models import DownloadError, Models
from gateway.http.bodies import Message
from gateway.http.json_body import json_object
from gateway.http.openapi import refuses
from gateway.http.validation import Integer, check, quoted
from gateway.pipelines.preparation import PreparationError, Preparations, PreparedChoice, faster_note, wish_of
from gateway.pipelines.state import Pipelines
from gateway.serving.interface import Serving, ServingError
from streaming.specs import SPECS, PipelineSpec


class PrepareQuery(BaseModel):
    pipeline_id: str = Field(examples=["longlive"])


class PrepareBody(BaseModel):
    pipeline_id: str = Field(examples=["longlive"])
    backend: PreparedChoice = Field("auto", description="auto: the fastest that this machine can prepare")
    height: Integer | None = Field(None, description="of the pictures; null: the pipeline's own")
    width: Integer | None = None
    vae_type: str | None = None


class PreparationBody(BaseModel):
    """Sizes in bytes."""

    pipeline_id: str
    download: dict[str, int] | None = Field(
        description="total_bytes, missing_bytes; null: it needs no files, or the hub does not tell"
    )
    download_problem: str | None = Field(description="why the hub does not tell")
    room: dict[str, Any] | None = Field(
        description="kind, free_bytes, and offers: by vae_type the largest usual height and width that fit; "
        "text says so"
    )
    preparation: dict[str, Any] | None = Field(
        description="the newest: state (running, done, failed, cancelled), backend, step, percentage, error"
    )
    note: str = Field(description="something faster is ready than what streams; else empty")


_PREPARE: TypeAdapter[PrepareBody] = TypeAdapter(PrepareBody)


def preparation_blueprint(preparations: Preparations, models: Models, pipelines: Pipelines) -> Blueprint:
    bp = Blueprint("preparation", __name__, url_prefix="/api/v1/pipeline")
    serving = pipelines.serving

    @bp.get("/prepare")
    @tag(["pipeline"])
    @document_querystring(PrepareQuery)
    @refuses(404)
    @validate_response(PreparationBody)
    async def status() -> dict[str, Any]:
        """What a pipeline would take here: its download, its memory; and how far its preparation is."""
        spec = _asked()
        size = await _size(models, spec)
        return {"pipeline_id": spec.id, **size, "room": await _room(serving, spec), **_progress(spec)}

    @bp.post("/prepare")
    @operators_only()
    @tag(["pipeline"])
    @document_request(PrepareBody)
    @refuses(400, 404, 409, 422)
    @validate_response(Message)
    async def start() -> Message:
        """Begin to download, export and build what the backend needs; poll until it is `done` or `failed`."""
        body = check(_PREPARE, await json_object(request), "body")
        spec = _known(body.pipeline_id)
        try:
            size = (body.height, body.width)
            wish = wish_of(spec, preparations.tools, body.backend, size, body.vae_type)
            await serving.check_room(spec, wish.load_params())
        except (PreparationError, ServingError) as error:
            raise ApiError(400, f"{spec.id} cannot be prepared: {error}") from error
        preparations.start(wish)
        return Message(message=f"Preparing {spec.id} for backend {wish.backend}: {wish.reason}")

    @bp.delete("/prepare")
    @operators_only()
    @tag(["pipeline"])
    @document_querystring(PrepareQuery)
    @refuses(404)
    @validate_response(Message)
    async def cancel() -> Message:
        """End a preparation; what is complete of it is kept."""
        spec = _asked()
        if not await preparations.cancel(spec.id):
            raise ApiError(404, f"No preparation of {spec.id} runs.")
        return Message(message=f"The preparation of {spec.id} was cancelled")

    def _progress(spec: PipelineSpec) -> dict[str, Any]:
        found = preparations.find(spec.id)
        if found is None:
            return {"preparation": None, "note": ""}
        loaded, plan = pipelines.loaded, serving.load_plan
        running = plan.engines[0].backend if plan is not None and plan.engines else None
        note = faster_note(found, running) if loaded is not None and loaded.spec.id == spec.id else ""
        return {"preparation": found.describe(), "note": note}

    return bp


async def _size(models: Models, spec: PipelineSpec) -> dict[str, Any]:
    try:
        size = None if spec.loop is None else asdict(await models.size(spec.id))
    except DownloadError as error:
        return {"download": None, "download_problem": str(error)}
    return {"download": size, "download_problem": None}


async def _room(serving: Serving, spec: PipelineSpec) -> dict[str, Any] | None:
    try:
        room = await serving.room(spec)
    except ServingError:  # a damaged file, which a download mends and a load tells
        return None
    return None if room is None else {**asdict(room), "text": room.text}


def _asked() -> PipelineSpec:
    return _known(request.args.get("pipeline_id", ""))


def _known(pipeline_id: str) -> PipelineSpec:
    spec = SPECS.get(pipeline_id)
    if spec is None:
        raise ApiError(404, f"Unknown pipeline: {quoted(pipeline_id)}. Known pipelines: {', '.join(SPECS)}.")
    return spec
