"""What quart-schema does not tell of the API: refusals, bodies that are not JSON, required parameters."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, TypeVar

from quart import request
from quart_schema import document_response
from quart_schema.openapi import OpenAPIProvider
from werkzeug.routing.rules import Rule

from gateway.http.bodies import ErrorBody

View = TypeVar("View", bound=Callable[..., Any])
Json = dict[str, Any]

PROBLEM: Final = "application/problem+json"
"""The type of an error as RFC 9457 has it."""

_ANSWERS: Final = "_wanstream_answers"
_UPLOAD: Final = "_wanstream_upload"
_EVERY_JSON_REQUEST: Final = (413, 422)


def refuses(*statuses: int) -> Callable[[View], View]:
    """Document that a route answers these statuses with an `ErrorBody`."""

    def document(view: View) -> View:
        for status in statuses:
            view = document_response(ErrorBody, status)(view)
        return view

    return document


def answers(status: int, *media_types: str, description: str) -> Callable[[View], View]:
    """Document an answer that is not JSON; without media types it has no body."""
    content = {media_type: {"schema": _schema_of(media_type)} for media_type in media_types}
    answer: Json = {"description": description} | ({"content": content} if content else {})

    def document(view: View) -> View:
        setattr(view, _ANSWERS, {**getattr(view, _ANSWERS, {}), str(status): answer})
        return view

    return document


def takes_text(media_type: str) -> Callable[[View], View]:
    """Document that a request's body is text of this type."""
    body = {"required": True, "content": {media_type: {"schema": {"type": "string"}}}}

    def document(view: View) -> View:
        setattr(view, _UPLOAD, body)
        return view

    return document


def takes_file(description: str) -> Callable[[View], View]:
    """Document that a request's body is a file as it is, of any type."""
    body = {
        "description": description,
        "required": True,
        "content": {"*/*": {"schema": _schema_of("*/*")}},
    }

    def document(view: View) -> View:
        setattr(view, _UPLOAD, body)
        return view

    return document


class ApiDocument(OpenAPIProvider):
    """The document at /openapi.json."""

    def schema(self) -> Json:
        return {**super().schema(), "servers": [{"url": request.root_path or "/"}]}

    def build_paths(self, rule: Rule) -> tuple[Json, Json]:
        paths, components = super().build_paths(rule)
        view = self._app.view_functions[rule.endpoint]
        for operations in paths.values():
            for operation in operations.values():
                operation["operationId"] = rule.endpoint.replace(".", "_")  # unique, unlike the view's name
                self._complete(operation, view)
        return paths, components

    def build_querystring_parameters(self, model: Any) -> tuple[list[Json], Json]:
        parameters, components = super().build_querystring_parameters(model)
        for parameter in parameters:
            parameter["required"] = model.model_fields[parameter["name"]].is_required()
        return parameters, components

    def _complete(self, operation: Json, view: Callable[..., Any]) -> None:
        responses = {str(status): answer for status, answer in operation["responses"].items()}
        refused = [401] if self._extension.security else []
        if "requestBody" in operation:
            operation["requestBody"]["required"] = True
            refused += _EVERY_JSON_REQUEST
        elif hasattr(view, _UPLOAD):
            operation["requestBody"] = getattr(view, _UPLOAD)
        for status in refused:
            responses[str(status)] = self.build_response_object(ErrorBody, None)[0]
        responses |= getattr(view, _ANSWERS, {})
        for code, answer in responses.items():
            if int(code) >= 400 or not answer["description"]:
                answer["description"] = HTTPStatus(int(code)).phrase
        operation["responses"] = dict(sorted(responses.items()))


def _schema_of(media_type: str) -> Json:
    if media_type == PROBLEM:
        fields = {"type": "string", "title": "string", "status": "integer", "detail": "string"}
        properties = {name: {"type": kind} for name, kind in fields.items()}
        return {"type": "object", "required": list(fields), "properties": properties}
    if media_type.startswith("text/") or media_type == "application/sdp":
        return {"type": "string"}
    return {"type": "string", "format": "binary"}
