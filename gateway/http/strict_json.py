"""Strict JSON, for request bodies and data-channel messages.

Not `pydantic_core.from_json`: it takes 1e999 for infinity, refuses a byte order mark, and tells line and
column in a sentence where clients are answered an offset.
"""

import json
import math
from typing import Any, Final, NoReturn

_BYTE_ORDER_MARK: Final = "\ufeff"


class JsonError(ValueError):
    """A document that is not JSON. position: byte or character offset of the fault."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


def parse_json(document: str | bytes) -> Any:
    """Parse RFC 8259 JSON; what Python's parser lets through beyond it (NaN, Infinity) is refused.

    A byte order mark before it is no fault: editors and shells on Windows write one. Raises JsonError, also
    for bytes that are not UTF-8, lone surrogates and nesting too deep to parse.
    """
    try:
        text = document.decode("utf-8") if isinstance(document, bytes) else document
        text = text.removeprefix(_BYTE_ORDER_MARK)
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
