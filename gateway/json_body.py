"""Strict JSON for request bodies and data-channel messages, with Scope's 422 shapes."""

import json
import math
from typing import Any, NoReturn

from quart import Request

from gateway.errors import ApiError, Problem, ValidationFailed

MAX_JSON_BYTES = 1 << 20
_BODY_TIMEOUT_HINT = f"JSON bodies are limited to {MAX_JSON_BYTES // (1 << 20)} MiB"


class JsonError(ValueError):
    """A document that is not JSON. position: byte or character offset of the fault."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


def parse_json(document: str | bytes) -> Any:
    """Parse RFC 8259 JSON; what Python's parser lets through beyond it (NaN, Infinity) is refused.

    Raises JsonError, also for bytes that are not UTF-8, lone surrogates and nesting too deep to parse.
    """
    try:
        text = document.decode("utf-8") if isinstance(document, bytes) else document
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        # Escapes such as \ud800 pass the parser but cannot be encoded again, in a log line for example.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, error.pos) from error
    except UnicodeDecodeError as error:
        raise JsonError("not valid UTF-8", error.start) from error
    except UnicodeEncodeError as error:
        raise JsonError("a lone surrogate is not a character", error.start) from error
    except RecursionError as error:
        raise JsonError("nested too deeply") from error
    except JsonError:
        raise
    except ValueError as error:  # integers beyond Python's digit limit
        raise JsonError(str(error)) from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise JsonError(f"{digits[:40]} is too large")
    return number


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises ApiError 413 for more than 1 MiB, ValidationFailed where the body is absent, not JSON or no object.
    """
    if (request.content_length or 0) > MAX_JSON_BYTES:
        raise ApiError(413, f"Request body too large: {_BODY_TIMEOUT_HINT}")
    body = bytearray()
    async for piece in request.body:
        body += piece
        if len(body) > MAX_JSON_BYTES:
            raise ApiError(413, f"Request body too large: {_BODY_TIMEOUT_HINT}")
    if not body:
        raise ValidationFailed([Problem(type="missing", loc=["body"], msg="Field required", input=None)])
    if not _is_json(request.mimetype):
        text = bytes(body[:200]).decode("utf-8", "replace")
        raise ValidationFailed([_not_an_object(text, "Send JSON with Content-Type: application/json")])
    try:
        value = parse_json(bytes(body))
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


def _is_json(mimetype: str) -> bool:
    return mimetype in ("", "text/plain", "application/json") or (
        mimetype.startswith("application/") and mimetype.endswith("+json")
    )


def _not_an_object(value: Any, message: str) -> Problem:
    return Problem(type="model_attributes_type", loc=["body"], msg=message, input=value)
