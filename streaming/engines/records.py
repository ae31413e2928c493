"""JSON records beside engines: frozen, complete, and refused with a reason when they are not. Torch-free."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from streaming.errors import WanstreamError

REMEDY = "Export it again: wanstream-export."
R = TypeVar("R", bound="Record")


class EngineError(WanstreamError):
    """An engine is absent, damaged, or not the one that is needed."""


class Record(BaseModel):
    """Base of what is stored; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_record(path: Path, record: type[R], absent: str) -> R:
    """The record in `path`. absent: what an absent file means, such as "There is no engine".

    Raises EngineError when it is absent, or cannot be read.
    """
    try:
        return record.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise EngineError(f"{absent} in '{path.parent}': it has no {path.name}. {REMEDY}") from error
    except OSError as error:
        raise EngineError(f"'{path}' cannot be read ({error}). {REMEDY}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise EngineError(f"'{path}' is damaged ({where}: {first['msg']}). {REMEDY}") from error
