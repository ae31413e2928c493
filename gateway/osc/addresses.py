"""OSC addresses and what they reach.

All live parameters of a plain type have an address, made from the schema that the data channel and REST use;
a few keys are OSC's own, because a fader sends one number and no JSON.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.errors import ValidationFailed
from gateway.http.validation import check
from gateway.osc.wire import Impulse, OscError
from gateway.show.files import NAME_RULE
from gateway.stream.parameters.checks import FIELDS, MAX_PROMPTS, MAX_TRANSITION_CHUNKS
from gateway.stream.parameters.tempo import BPM_RANGE, MAX_BEATS_PER_BAR
from gateway.stream.seat import COMMANDS
from gateway.stream.streams import ALL

_STREAM: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_PATTERN: Final = re.compile(r"[*?\[\]{}#,\s]")
_MAX_ADDRESS: Final = 256
_NOT_LIVE: Final = COMMANDS | {"pipeline_ids"}  # of peers, of an offer
_PLAIN_TYPES: Final = ("boolean", "integer", "number", "string")
_TYPE_CODES: Final = ("bool_type", "float_type", "int_type", "list_type", "string_type")


@dataclass(frozen=True, slots=True)
class Key:
    """One thing that OSC can set. The last part of its address is `name`, with <...> for what varies.

    type: boolean, integer, number, string, trigger (a button) or array; its elements are of type `items`.
    field: the parameter that decides which values are valid; None: one of OSC's own.
    """

    name: str
    type: str
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    items: str = ""
    field: str | None = None

    def convert(self, arguments: Sequence[Any]) -> Any:
        """The value that a message means, of the right type and range. Raises OscError."""
        if self.type == "array":
            is_array = len(arguments) == 1 and isinstance(arguments[0], list)
            given = arguments[0] if is_array else arguments
            value: Any = [_convert(self.items, item) for item in given]
        elif self.type == "trigger" and not arguments:
            return True
        elif len(arguments) != 1:
            raise OscError("type", f"{self.name} takes one argument, not {len(arguments)}")
        else:
            value = _convert(self.type, arguments[0])
        if self.field is not None:
            check_field(self.field, value)
        return value


def split(address: str, streams: Callable[[str], object]) -> tuple[str, str]:
    """The stream's name, or `all`, and the key of an address.

    streams: fails for a name that no stream has. Raises OscError.
    """
    if len(address) > _MAX_ADDRESS or _PATTERN.search(address):
        raise OscError("address", "Address patterns are not taken: write the address out")
    root, _, rest = address[1:].partition("/")
    if root == "scope":
        return ALL, rest
    stream, _, key = rest.partition("/")
    if root != "wanstream" or not _STREAM.fullmatch(stream):
        raise OscError("address", "Addresses are /scope/<key> and /wanstream/<stream or all>/<key>")
    if stream != ALL:
        streams(stream)
    return stream, key


def find(name: str) -> tuple[Key, tuple[str, ...]]:
    """The key of an address and what stands for the <...> of its name. Raises OscError."""
    for pattern, key in _PATTERNS:
        match = pattern.fullmatch(name)
        if match is not None:
            return key, match.groups()
    raise OscError("address", "No such key: GET /api/v1/osc/paths lists them")


def check_field(field: str, value: Any) -> None:
    """Raises OscError for a value that parameter `field` cannot have on any server."""
    try:
        check(FIELDS[field], value, field)
    except ValidationFailed as error:
        reason = "type" if error.problems[0]["type"] in _TYPE_CODES else "range"
        raise OscError(reason, str(error)) from error


def check_transition(**values: Any) -> None:
    """Raises OscError for a number of steps or a method that no transition can have."""
    check_field("transition", {"target_prompts": [{"text": ""}], **values})


def _convert(kind: str, value: Any) -> Any:
    """One argument as a value of that type: faders send floats, buttons what they like."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in ("boolean", "trigger"):
        if isinstance(value, bool) or is_number or (kind == "trigger" and isinstance(value, Impulse)):
            return value is Impulse.IMPULSE or bool(value)
    elif kind == "string":
        if isinstance(value, str):
            return value
    elif is_number and kind == "integer":
        if isinstance(value, int) or value.is_integer():
            return int(value)
    elif is_number:
        # What a fader calls 0.7 comes as 0.699999988.
        return value if isinstance(value, int) else float(f"{value:.7g}")
    shown = "an impulse" if isinstance(value, Impulse) else type(value).__name__
    raise OscError("type", f"{shown} is no {kind}")


def _schema_keys() -> Iterator[Key]:
    """The parameters that one message can set as they are."""
    for name, adapter in FIELDS.items():
        schema = adapter.json_schema()
        kind, items = schema.get("type"), schema.get("items", {}).get("type")
        if name in _NOT_LIVE or not (kind in _PLAIN_TYPES or (kind == "array" and items in _PLAIN_TYPES)):
            continue
        limits = schema["items"] if kind == "array" else schema
        key = Key(
            name,
            kind,
            schema.get("description", ""),
            minimum=_limit(limits, "ge", "minimum"),
            maximum=_limit(limits, "le", "maximum"),
            choices=tuple(schema.get("enum", ())),
            items=items or "",
            field=name,
        )
        yield replace(key, type="trigger") if name == "reset_cache" else key


def _limit(schema: Mapping[str, Any], *names: str) -> float | None:
    return next((schema[name] for name in names if name in schema), None)


def _own_keys() -> Iterator[Key]:
    """What one message cannot say as JSON does."""
    blending = FIELDS["prompt_interpolation_method"].json_schema()
    choices, last = tuple(blending["enum"]), MAX_PROMPTS - 1
    yield Key("prompt", "string", "What to show: one prompt instead of all others")
    yield Key("prompt/<i>/text", "string", f"One of several prompts; <i> is 0 to {last}")
    yield Key("prompt/<i>/weight", "number", "The weight of that prompt against the others", minimum=0)
    yield Key("prompts", "pairs", "Several prompts at once: a text and its weight, again and again")
    text = "Chunks over which the next `prompt` takes the old one's place; 0: at once"
    yield Key("transition_steps", "integer", text, 0, MAX_TRANSITION_CHUNKS)
    text = "How the next `prompt` is reached over those chunks"
    yield Key("temporal_interpolation_method", "string", text, choices=choices)
    blend = "prompt_interpolation_method"
    yield Key("interpolation_method", "string", blending["description"], choices=choices, field=blend)
    yield Key("tempo/tap", "trigger", "Tap the beat")
    yield Key("tempo/bpm", "number", "Beats per minute", *BPM_RANGE)
    text = "Which beat of the bar it is now, from who counts them; 1 is its first, fractions are between"
    yield Key("tempo/beat", "number", text, 1, MAX_BEATS_PER_BAR)
    quantize = FIELDS["quantize_mode"].json_schema()
    modes = tuple(quantize["enum"])
    yield Key("tempo/quantize", "string", quantize["description"], choices=modes, field="quantize_mode")
    yield Key("cue/<name>", "trigger", "Play the cue list of that name")
    yield Key("look/<name>", "trigger", "Move to the look of that name, or of that number in the order")
    text = "Scale of the loaded adapter whose file has that name, without its ending"
    yield Key("lora/<stem>/scale", "number", text, -10, 10)


KEYS: Final = (*_own_keys(), *_schema_keys())
_VARIABLES: Final = {"<i>": r"(0|[1-9][0-9]?)", "<stem>": r"([^/]+)", "<name>": rf"({NAME_RULE})"}


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"(<\w+>)", name)
    return re.compile("".join(_VARIABLES.get(part) or re.escape(part) for part in parts))


_PATTERNS: Final = [(_pattern(key.name), key) for key in KEYS]
