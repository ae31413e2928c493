"""Strict JSON request bodies, with Scope's 422 shapes."""

from typing import Any

from quart import Request

from gateway.errors import Problem, ValidationFailed
from gateway.http.limited import limited_body
from gateway.http.strict_json import JsonError, parse_json

__all__ = ["MAX_JSON_BYTES", "JsonError", "json_object", "json_text", "parse_json"]

MAX_JSON_BYTES = 1 << 20
_LIMIT = f"JSON bodies are limited to {MAX_JSON_BYTES // (1 << 20)} MiB"


async def json_object(request: Request, *, or_empty: bool = False) -> dict[str, Any]:
    """The JSON object in a request's body. or_empty: no body at all stands for an empty one.

    Raises ApiError 413 for more than 1 MiB, ValidationFailed where the body is absent, not JSON or no object.
    """
    body = await _json_bytes(request, or_empty)
    if not body:
        return {}
    try:
        value = parse_json(body)
    except JsonError as error:
        problem = Problem(
            type="json_invalid",
            loc=["body", error.position],
            msg="JSON decode error",
            input={},
            ctx={"error": str(error)},
        )
        raise ValidationFailed([problem]) from error
    if not isinstance(value, dict):
        raise ValidationFailed([_not_an_object(value, "Input should be a valid JSON object")])
    return value


async def json_text(request: Request) -> str:
    """A request's JSON body as it was written, for problems that tell the line.

    Raises ApiError 413 for more than 1 MiB, ValidationFailed where it is absent, not called JSON, not UTF-8.
    """
    body = await _json_bytes(request, or_empty=False)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValidationFailed([_not_an_object("", "The body is not valid UTF-8")]) from error


async def _json_bytes(request: Request, or_empty: bool) -> bytes:
    body = await limited_body(request, MAX_JSON_BYTES, _LIMIT)
    if not body and not or_empty:
        raise ValidationFailed([Problem(type="missing", loc=["body"], msg="Field required", input=None)])
    if body and not _is_json(request.mimetype):
        text = body[:200].decode("utf-8", "replace")
        raise ValidationFailed([_not_an_object(text, "Send JSON with Content-Type: application/json")])
    return body


def _is_json(mimetype: str) -> bool:
    return mimetype in ("", "text/plain", "application/json") or (
        mimetype.startswith("application/") and mimetype.endswith("+json")
    )


def _not_an_object(value: Any, message: str) -> Problem:
    return Problem(type="model_attributes_type", loc=["body"], msg=message, input=value)
