"""Type checks shared by the load parameters and the live parameters, in Scope's 422 shapes (api.md 1)."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, PydanticKnownError

from gateway.errors import Problem, ValidationFailed

T = TypeVar("T")

MAX_PROBLEMS: Final = 20  # of one value; a client needs no more to find its mistake
MAX_SEED: Final = 2**63 - 1

# pydantic tells several ways of not being a number apart; clients know one code per type.
_CODES: Final = {
    "int_parsing": "int_type",
    "int_parsing_size": "int_type",
    "int_from_float": "int_type",
    "float_parsing": "float_type",
    "bool_parsing": "bool_type",
    "string_unicode": "string_type",
}
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # but not \t \n \r
_LINE_BREAK: Final = re.compile("[\t\n\r]")


def _not_bool(code: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticKnownError(code)  # type: ignore[arg-type]
        return value

    return BeforeValidator(check)


def _printable(text: str) -> str:
    if _CONTROL.search(text):
        raise PydanticCustomError("string_control_character", "Text must not contain control characters")
    return text


def _one_line(text: str) -> str:
    if _LINE_BREAK.search(text):
        raise PydanticCustomError("string_control_character", "A path must not contain tabs or line breaks")
    return text


Integer = Annotated[int, _not_bool("int_type")]
Number = Annotated[float, _not_bool("float_type"), Field(allow_inf_nan=False)]
Seed = Annotated[Integer, Field(ge=0, le=MAX_SEED)]
Text = Annotated[str, Field(max_length=8192), AfterValidator(_printable)]
FilePath = Annotated[
    str, Field(min_length=1, max_length=4096), AfterValidator(_printable), AfterValidator(_one_line)
]


def check(adapter: TypeAdapter[T], value: object, *loc: str | int) -> T:
    """`value` as the adapter's type. Raises ValidationFailed with problems that are located below `loc`."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ValidationFailed(list(_problems(error, loc))) from error


def _problems(error: ValidationError, loc: tuple[str | int, ...]) -> Iterable[Problem]:
    for item in error.errors(include_url=False)[:MAX_PROBLEMS]:
        problem = Problem(
            type=_CODES.get(item["type"], item["type"]),
            loc=[*loc, *item["loc"]],
            msg=item["msg"],
            input=echo(item["input"]),
        )
        if "ctx" in item:
            problem["ctx"] = item["ctx"]
        yield problem


def located(problems: Iterable[Problem], *prefix: str | int) -> list[Problem]:
    """The same problems, each located below `prefix`."""
    return [Problem(**{**p, "loc": [*prefix, *p["loc"]]}) for p in problems]


def echo(value: Any, depth: int = 3) -> Any:
    """What an error message repeats of a rejected value: of bounded size, and always valid JSON."""
    if isinstance(value, str):
        return quoted(value, 200)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return (
            value if abs(value) <= MAX_SEED else f"{value:.3e}" if abs(value) < 10**300 else "(huge integer)"
        )
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth == 0 or not isinstance(value, Mapping | list | tuple):
        return f"({type(value).__name__})"
    if isinstance(value, Mapping):
        return {quoted(str(k), 80): echo(v, depth - 1) for k, v in list(value.items())[:10]}
    return [echo(v, depth - 1) for v in value[:10]]


def quoted(text: str, length: int = 80) -> str:
    """At most `length` characters of a client's text that can be printed, encoded and logged."""
    cut = text if len(text) <= length else text[: length - 1] + "…"
    return _CONTROL.sub("�", cut)
