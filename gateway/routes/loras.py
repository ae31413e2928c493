"""List, install and delete LoRA files."""

from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter
from quart import Blueprint, request
from quart_schema import document_querystring, document_request, tag, validate_response

from gateway.access.auth import operators_only
from gateway.errors import ApiError
from gateway.files.loras.loras import Loras
from gateway.files.loras.sources import LoraEndpoints, LoraSource
from gateway.http.json_body import json_object
from gateway.http.openapi import refuses, takes_file
from gateway.http.query import UploadQuery, file_name
from gateway.http.validation import check


class LoraBody(BaseModel):
    name: str = Field(description="file name without suffix")
    path: str = Field(description="absolute path on the server, as `loras` of a load takes it")
    size_mb: float
    folder: str | None
    sha256: str | None
    provenance: dict[str, Any] | None
    read_only: bool
    problem: str | None = Field(description="why the file cannot be loaded")
    title: str | None = Field(description="as the training program noted it, as the next two")
    description: str | None
    trigger_words: list[str] = Field(description="for the prompt")


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


class DownloadBody(BaseModel):
    """source `huggingface` needs repo_id and hf_filename, `civitai` version_id, `url` url."""

    source: Literal["huggingface", "civitai", "url"]
    repo_id: str | None = None
    hf_filename: str | None = None
    model_id: str | None = None
    version_id: str | None = None
    url: str | None = None
    subfolder: str | None = None
    expected_sha256: str | None = None
    civitai_token: str | None = Field(None, repr=False)


class DownloadedBody(BaseModel):
    filename: str
    path: str
    sha256: str
    size_bytes: int


class ProvenanceBody(BaseModel):
    source: Literal["huggingface", "civitai", "url", "local"]
    repo_id: str | None = None
    hf_filename: str | None = None
    model_id: str | None = None
    version_id: str | None = None
    url: str | None = None


class EntryBody(BaseModel):
    filename: str
    provenance: ProvenanceBody
    sha256: str
    size_bytes: int
    added_at: str


_DOWNLOAD: TypeAdapter[DownloadBody] = TypeAdapter(DownloadBody)
_PROVENANCE: TypeAdapter[ProvenanceBody] = TypeAdapter(ProvenanceBody)
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
    @operators_only()
    @tag(["loras"])
    @document_request(InstallBody)
    @refuses(400, 401, 403, 404, 409, 422, 500, 507)
    @validate_response(InstalledBody)
    async def install() -> dict[str, Any]:
        """Download a file from Hugging Face or CivitAI; answers when it is stored."""
        body = check(_INSTALL, await json_object(request), "body")
        return await loras.install(body.url, body.filename)

    @bp.post("/lora/upload")
    @operators_only()
    @tag(["loras"])
    @document_querystring(UploadQuery)
    @takes_file("the file itself, of any length")
    @refuses(400, 408, 409, 422, 500, 507)
    @validate_response(InstalledBody)
    async def upload() -> dict[str, Any]:
        """Store the request's body as a new file."""
        return await loras.upload(file_name(), request.body, request.content_length)

    @bp.post("/lora/download")
    @operators_only()
    @tag(["loras"])
    @document_request(DownloadBody)
    @refuses(400, 401, 403, 404, 409, 422, 500, 507)
    @validate_response(DownloadedBody)
    async def download() -> dict[str, Any]:
        """Download a file, named by its service's own terms; answers when it is stored."""
        body = check(_DOWNLOAD, await json_object(request), "body")
        return await loras.download(_source(loras.endpoints, body), body.subfolder, body.expected_sha256)

    @bp.put("/lora/<path:filename>/provenance")
    @operators_only()
    @tag(["loras"])
    @document_request(ProvenanceBody)
    @refuses(400, 404, 422)
    @validate_response(EntryBody)
    async def provenance(filename: str) -> dict[str, Any]:
        """Note where a file came from."""
        body = check(_PROVENANCE, await json_object(request), "body")
        return await loras.set_provenance(filename, body.model_dump())

    @bp.delete("/loras/<name>")
    @operators_only()
    @tag(["loras"])
    @refuses(403, 404, 409, 500)
    @validate_response(DeletedBody)
    async def delete(name: str) -> dict[str, Any]:
        """Delete the file of that name (without suffix)."""
        return await loras.delete(name)

    return bp


def _source(endpoints: LoraEndpoints, body: DownloadBody) -> LoraSource:
    match body:
        case DownloadBody(source="huggingface", repo_id=str(repository), hf_filename=str(path)):
            return endpoints.from_huggingface(repository, path)
        case DownloadBody(source="civitai", version_id=str(version)):
            return endpoints.from_civitai(version, body.model_id, body.civitai_token)
        case DownloadBody(source="url", url=str(url)):
            return endpoints.from_anywhere(url)
    needed = {"huggingface": "repo_id and hf_filename", "civitai": "version_id", "url": "url"}[body.source]
    raise ApiError(400, f"Source '{body.source}' needs {needed}.")
