"""Engine sets with LoRA files in their weights, which loads have made: see what there is, and delete it."""

import asyncio
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_querystring, tag, validate_response

from gateway.access.auth import operators_only
from gateway.errors import ApiError
from gateway.http.openapi import refuses
from gateway.http.validation import check, quoted
from gateway.serving.interface import Serving, ServingError
from gateway.serving.merged_sets import MergedSets


class MergedLoraBody(BaseModel):
    file: str
    sha256: str
    scale: float


class MergedSetBody(BaseModel):
    name: str
    pipeline_id: str
    loras: list[MergedLoraBody]
    size_bytes: int = Field(description="of what it does not share with other engine sets")
    last_used: str = Field(description="ISO 8601")
    in_use: bool = Field(description="it is loaded, and cannot be deleted")


class MergedSetsBody(BaseModel):
    limit: int = Field(description="of their number; the one that is not used longest goes")
    sets: list[MergedSetBody]


class RemovedQuery(BaseModel):
    name: str | None = Field(None, description="without it all that are not in use")


class RemovedSetsBody(BaseModel):
    removed: list[str]
    freed_bytes: int


_REMOVED: TypeAdapter[RemovedQuery] = TypeAdapter(RemovedQuery)


def merged_sets_blueprint(merged: MergedSets, serving: Serving) -> Blueprint:
    bp = Blueprint("merged_sets", __name__, url_prefix="/api/v1/pipeline")

    @bp.get("/merged-sets")
    @tag(["loras"])
    @validate_response(MergedSetsBody)
    async def list_sets() -> dict[str, Any]:
        """What loads with LoRA files in the weights of Triton's engines have made, the newest use first."""
        found, in_use = await asyncio.to_thread(merged.found), _in_use()
        return {"limit": merged.limit, "sets": [one.describe(in_use) for one in found]}

    @bp.delete("/merged-sets")
    @operators_only()
    @tag(["loras"])
    @document_querystring(RemovedQuery)
    @refuses(404, 409, 422)
    @validate_response(RemovedSetsBody)
    async def remove() -> dict[str, Any]:
        """Delete one, or all that are not in use. The next load that needs it makes it again."""
        query, in_use = check(_REMOVED, request.args.to_dict(), "query"), _in_use()
        names = [one.name for one in await asyncio.to_thread(merged.found)]
        if query.name is not None and query.name not in names:
            raise ApiError(404, f"There is no merged set '{quoted(query.name)}'.")
        if query.name is not None and query.name == in_use:
            raise ApiError(409, f"'{query.name}' is loaded. Unload the pipeline first.")
        chosen = [name for name in names if name != in_use and query.name in (None, name)]
        try:
            freed = await asyncio.to_thread(merged.remove, chosen)
        except ServingError as error:
            raise ApiError(409, str(error)) from error
        return {"removed": chosen, "freed_bytes": freed}

    def _in_use() -> str | None:
        plan = serving.load_plan
        return None if plan is None else plan.engine_set

    return bp
