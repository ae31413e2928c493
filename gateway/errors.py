"""HTTP errors in Scope's shape: always an object with one key `detail` (api.md 1)."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from streaming.errors import WanstreamError


class Problem(TypedDict, total=False):
    """One element of a 422 answer, and of a `parameter_error` message."""

    type: str  # machine code: missing, int_type, less_than_equal, ...
    loc: list[str | int]
    msg: str
    input: Any
    ctx: dict[str, Any]
    line: int  # of a document that people edit, from 1


class ApiError(WanstreamError):
    """A request that is refused.

    status: HTTP status, 400..599. detail: a sentence that says what to do.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


class ValidationFailed(WanstreamError):
    """A request whose content is of the wrong form: 422 with the list of problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems))
        self.problems = list(problems)
