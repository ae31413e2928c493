"""Upload, list and serve assets."""

import asyncio
from typing import Any, cast, get_args

from pydantic import BaseModel, Field
from quart import Blueprint, Response, request
from quart_schema import document_querystring, hide, tag, validate_response

from gateway.errors import Problem, ValidationFailed
from gateway.files import media
from gateway.files.assets import Assets
from gateway.files.media import Kind
from gateway.http.file_response import file_response
from gateway.http.openapi import answers, refuses, takes_file
from gateway.http.query import UploadQuery, file_name


class AssetBody(BaseModel):
    name: str = Field(description="file name without suffix")
    path: str = Field(description="absolute path on the server, as vace_ref_images takes it")
    size_mb: float
    folder: str | None
    type: Kind
    created_at: float = Field(description="Unix seconds")
    url: str


class AssetsBody(BaseModel):
    assets: list[AssetBody]


class UploadedBody(AssetBody):
    problem: str | None = Field(description="why the file, although stored, cannot be decoded")


class AssetsQuery(BaseModel):
    type: Kind | None = None


class ServeQuery(BaseModel):
    thumbnail: str | None = Field(None, description="1: a small WebP picture instead of the file")


def assets_blueprint(assets: Assets) -> Blueprint:
    bp = Blueprint("assets", __name__)

    @bp.get("/api/v1/assets")
    @tag(["assets"])
    @document_querystring(AssetsQuery)
    @refuses(422)
    @validate_response(AssetsBody)
    async def list_assets() -> dict[str, Any]:
        """All assets, the newest first."""
        return {"assets": await assets.entries(_kind(request.args.get("type")))}

    @bp.post("/api/v1/assets")
    @tag(["assets"])
    @document_querystring(UploadQuery)
    @takes_file("the file itself, at most 50 MiB; its type follows from the name")
    @refuses(400, 408, 409, 413, 422, 500, 507)
    @validate_response(UploadedBody)
    async def upload() -> dict[str, Any]:
        """Store the request's body as a file, in place of one of that name if there is one."""
        return await assets.upload(file_name(), request.body, request.content_length)

    @bp.get("/api/v1/assets/<path:name>")
    @tag(["assets"])
    @document_querystring(ServeQuery)
    @answers(200, "*/*", description="the whole file, or its thumbnail")
    @answers(206, "*/*", description="the range of bytes that was asked for")
    @answers(304, description="not modified since")
    @refuses(403, 404, 416)
    async def serve(name: str) -> Response:
        """A file, or with `thumbnail=1` a small WebP picture of it."""
        return await _send(assets, name)

    @bp.get("/api/v1/assets//<path:name>")
    @hide
    async def serve_absolute(name: str) -> Response:
        return await _send(assets, f"/{name}")

    return bp


async def _send(assets: Assets, name: str) -> Response:
    path = await asyncio.to_thread(assets.find, name)
    if request.args.get("thumbnail") == "1":
        response = Response(await assets.thumbnail(path), mimetype="image/webp")
        await response.add_etag()
        await response.make_conditional(request)
    else:
        response = await file_response(path, media.content_type(path))
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _kind(text: str | None) -> Kind | None:
    if text is None or text in get_args(Kind):
        return cast("Kind | None", text)
    expected = "'image', 'video' or 'audio'"
    problem = Problem(
        type="literal_error",
        loc=["query", "type"],
        msg=f"Input should be {expected}",
        input=text[:200],
        ctx={"expected": expected},
    )
    raise ValidationFailed([problem])
