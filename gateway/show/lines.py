"""The line of a JSON document that a problem is about: people edit these files by hand."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from gateway.errors import Problem, ValidationFailed
from gateway.http.strict_json import JsonError, parse_json

T = TypeVar("T")

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder()


def read_document(text: str, read: Callable[[Any], T]) -> T:
    """What `read` makes of a JSON document. Raises ValidationFailed, with lines.

    read: raises ValidationFailed with places below `body`.
    """
    text = text.removeprefix("\ufeff")
    try:
        value = parse_json(text)
    except JsonError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = Problem(type="json_invalid", loc=["body"], msg=f"Line {line}: {error}", line=line)
        raise ValidationFailed([problem]) from error
    try:
        return read(value)
    except ValidationFailed as error:
        raise ValidationFailed(with_lines(error.problems, text)) from error


def with_lines(problems: Sequence[Problem], text: str) -> list[Problem]:
    """The problems of a valid document, each with the line that it is about."""
    located = []
    for problem in problems:
        line = line_of(text, problem["loc"][1:])
        located.append(Problem(**{**problem, "line": line, "msg": f"Line {line}: {problem['msg']}"}))
    return located


def line_of(text: str, place: Sequence[str | int]) -> int:
    """The line, from 1, where the value at `place` begins; of what is missing, the nearest around it."""
    position = _skip(text, 0)
    for step in place:
        inside = _inside(text, position, step)
        if inside is None:
            break
        position = inside
    return text.count("\n", 0, position) + 1


def _inside(text: str, position: int, step: str | int) -> int | None:
    """Where one element of the list, or the member of the object, that begins at `position` begins."""
    opening = text[position : position + 1]
    if opening not in ("[", "{"):
        return None
    position, number = _skip(text, position + 1), 0
    while text[position : position + 1] not in ("]", "}", ""):
        key: str | int = number
        if opening == "{":
            key, position = _DECODER.raw_decode(text, position)
            position = _skip(text, _skip(text, position) + 1)
        if key == step:
            return position
        _, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        number += 1
    return None


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()
