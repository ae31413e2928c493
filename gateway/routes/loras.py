"""List, install and delete LoRA files."""

from typing import Any

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_request, document_response, tag, validate_response

from gateway.bodies import ErrorBody
from gateway.json_body import json_object
from gateway.loras import Loras
from gateway.validation import check


class LoraBody(BaseModel):
    name: str = Field(description="file name without suffix")
    path: str = Field(description="absolute path on the server, as `loras` of a load takes it")
    size_mb: float
    folder: str | None
    sha256: str | None
    provenance: dict[str, Any] | None
    read_only: bool
    problem: str | None = Field(description="why the file cannot be loaded")


class LorasBody(BaseModel):
    lora_files: list[LoraBody]


class InstallBody(BaseModel):
    url: str
    filename: str | None = None


class InstalledBody(BaseModel):
    message: str
    file: LoraBody


class DeletedBody(BaseModel):
    success: bool
    message: str


_INSTALL: TypeAdapter[InstallBody] = TypeAdapter(InstallBody)


def loras_blueprint(loras: Loras) -> Blueprint:
    bp = Blueprint("loras", __name__, url_prefix="/api/v1")

    @bp.get("/loras")
    @tag(["loras"])
    @validate_response(LorasBody)
    async def list_loras() -> dict[str, Any]:
        """All LoRA files, ordered by folder and name."""
        return {"lora_files": await loras.entries()}

    @bp.get("/lora/list")
    @tag(["loras"])
    @validate_response(LorasBody)
    async def list_loras_as_before() -> dict[str, Any]:
        """The same list at its older address."""
        return {"lora_files": await loras.entries()}

    @bp.post("/loras")
    @tag(["loras"])
    @document_request(InstallBody)
    @document_response(ErrorBody, 400)
    @document_response(ErrorBody, 401)
    @document_response(ErrorBody, 403)
    @document_response(ErrorBody, 404)
    @document_response(ErrorBody, 409)
    @document_response(ErrorBody, 422)
    @document_response(ErrorBody, 500)
    @document_response(ErrorBody, 507)
    @validate_response(InstalledBody)
    async def install() -> dict[str, Any]:
        """Download a file from Hugging Face or CivitAI; answers when it is stored."""
        body = check(_INSTALL, await json_object(request), "body")
        return await loras.install(body.url, body.filename)

    @bp.delete("/loras/<name>")
    @tag(["loras"])
    @document_response(ErrorBody, 403)
    @document_response(ErrorBody, 404)
    @document_response(ErrorBody, 409)
    @validate_response(DeletedBody)
    async def delete(name: str) -> dict[str, Any]:
        """Delete the file of that name (without suffix)."""
        return await loras.delete(name)

    return bp
