"""What looks and cue lists may set: live parameters, with values that some stream could have."""

from typing import Any, Final

from gateway.errors import Problem, ValidationFailed
from gateway.http.validation import check, quoted
from gateway.stream.parameters.checks import FIELDS, name_of
from gateway.stream.seat import COMMANDS

_OF_OFFERS: Final = COMMANDS | {"pipeline_ids"}  # they come from whoever is connected


def check_settings(values: dict[str, Any], *place: str | int) -> None:
    """Raises ValidationFailed for what no stream could ever be set to."""
    for key, value in values.items():
        where = [*place, key]
        name = name_of(key)
        if name not in FIELDS or name in _OF_OFFERS:
            text = f"'{quoted(key)}' is no parameter that a stream can be set to: see docs/parameters.md"
            raise ValidationFailed([Problem(type="unknown_parameter", loc=where, msg=text, input=None)])
        if value is not None:
            check(FIELDS[name], value, *where)
