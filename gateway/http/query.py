"""Query parameters, with Scope's 422 shapes."""

from pydantic import BaseModel, Field
from quart import request

from gateway.errors import Problem, ValidationFailed


class UploadQuery(BaseModel):
    """How a file in a request's body is to be called."""

    filename: str = Field(examples=["picture.png", "folder/style.safetensors"])


def file_name() -> str:
    """`UploadQuery.filename` of the current request. Raises ValidationFailed."""
    name = request.args.get("filename")
    if name is None:
        problem = Problem(type="missing", loc=["query", "filename"], msg="Field required", input=None)
        raise ValidationFailed([problem])
    return str(name)


def query_int(name: str, default: int, *, minimum: int, maximum: int | None = None) -> int:
    """An integer query parameter of the current request. Raises ValidationFailed."""
    text = request.args.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise _refused(name, text, "int_type", "Input should be a valid integer", {}) from None
    if value < minimum:
        message = f"Input should be greater than or equal to {minimum}"
        raise _refused(name, text, "greater_than_equal", message, {"ge": minimum})
    if maximum is not None and value > maximum:
        message = f"Input should be less than or equal to {maximum}"
        raise _refused(name, text, "less_than_equal", message, {"le": maximum})
    return value


def _refused(name: str, text: str, kind: str, message: str, ctx: dict[str, int]) -> ValidationFailed:
    return ValidationFailed([Problem(type=kind, loc=["query", name], msg=message, input=text[:200], ctx=ctx)])
