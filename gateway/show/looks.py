"""Looks: sets of live parameters that people move between, and what of a MIDI controller moves them.

All of them are one JSON file, in the order of their number keys.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gateway.errors import ApiError, Problem, ValidationFailed
from gateway.http.validation import Integer, Number, Text, check, quoted
from gateway.recording.replay import Replays
from gateway.show.fades import MAX_TRANSITION_S, fade
from gateway.show.files import NAME, NAME_RULE, NAME_TEXT, write_whole
from gateway.show.lines import read_document
from gateway.show.settings import check_settings
from gateway.stream.stream import Stream
from streaming.specs import Interpolation

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_LOOKS: Final = 200
MAX_MAPPINGS: Final = 500
MAX_HIGH_CC: Final = 31

Name = Annotated[str, Field(pattern=rf"^{NAME_RULE}$")]
Seconds = Annotated[Number, Field(ge=0, le=MAX_TRANSITION_S)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LookBody(_Document):
    """A look without its name."""

    title: Annotated[Text, Field(max_length=200)] | None = Field(None, description="what people call it")
    set: dict[str, Any] = Field(description="live parameters and their values", min_length=1)
    transition_s: Seconds = Field(0.0, description="how long the stream moves there; 0: at once")
    transition_method: Interpolation = Field("linear", description="the way from prompt to prompt")


class Look(LookBody):
    name: Name = Field(description="its address")


Encoding = Literal["14_bit", "twos_complement", "binary_offset", "signed_bit"]


class MidiSource(_Document):
    """A knob, fader or key. One of `midi_cc` and `midi_note`; channel: 0 to 15, None for any."""

    midi_cc: Annotated[Integer, Field(ge=0, le=127)] | None = None
    midi_note: Annotated[Integer, Field(ge=0, le=127)] | None = None
    channel: Annotated[Integer, Field(ge=0, le=15)] | None = None
    encoding: Encoding | None = Field(
        None,
        description="how a controller sends its values; null: 0 to 127; 14_bit: with the one 32 above as its "
        "low bits; the others: endless knobs, which send steps",
    )


class MidiTarget(_Document):
    """What it moves; exactly one of these."""

    parameter: Annotated[Text, Field(max_length=200)] | None = None
    action: Annotated[Text, Field(max_length=200)] | None = None
    look: Name | None = None
    cue: Name | None = None
    begin: Annotated[Integer, Field(ge=0)] | None = Field(
        None, description="the line of the cue list, from 0"
    )


class MidiRange(_Document):
    min: Number
    max: Number


class MidiMapping(_Document):
    type: Literal["continuous", "toggle", "trigger", "enum_cycle"]
    source: MidiSource
    target: MidiTarget
    range: MidiRange | None = Field(None, description="of the values that a knob or fader reaches")


Mappings = Annotated[list[MidiMapping], Field(max_length=MAX_MAPPINGS)]


class LookBook(_Document):
    """All looks, in order, and the MIDI mappings: what is exported and imported."""

    version: Literal[1]
    looks: Annotated[list[Look], Field(max_length=MAX_LOOKS)] = []
    midi: Mappings = []

    def plain(self) -> dict[str, Any]:
        """As JSON, without what is as usual."""
        return {"version": 1, **self.model_dump(exclude_defaults=True, exclude={"version"})}

    def find(self, name: str) -> Look:
        """By its name, or by its number in the order, from 1. Raises ApiError 404."""
        for look in self.looks:
            if look.name == name:
                return look
        if name.isascii() and name.isdigit() and 0 < int(name[:6]) <= len(self.looks):
            return self.looks[int(name[:6]) - 1]
        raise ApiError(404, f"There is no look '{quoted(name, 64)}': PUT /api/v1/looks/NAME makes one")


_BOOK: Final[TypeAdapter[LookBook]] = TypeAdapter(LookBook)
_LOOK: Final[TypeAdapter[LookBody]] = TypeAdapter(LookBody)
_MIDI: Final[TypeAdapter[list[MidiMapping]]] = TypeAdapter(Mappings)


class Looks:
    """The looks in one file; nothing else is read or written."""

    def __init__(self, path: Path, replays: Replays) -> None:
        self._path = path
        self._replays = replays
        self._writing = asyncio.Lock()

    async def all(self) -> LookBook:
        """Raises ApiError 409 for a file that somebody has damaged."""
        return await asyncio.to_thread(self._read)

    async def replace_all(self, text: str) -> LookBook:
        """Import. Raises ValidationFailed with the lines that are wrong, ApiError 507."""
        book = read_document(text, read_book)
        async with self._writing:
            await asyncio.to_thread(write_whole, self._path, book.plain())
        return book

    async def put(self, name: str, text: str) -> Look:
        """Keep a look in the place of the one of that name, or as the last one.

        Raises ValidationFailed, ApiError 404 (not a name), 409 (the file is damaged), 507 (no room).
        """
        if not NAME.fullmatch(name):
            raise ApiError(404, f"'{quoted(name, 64)}' cannot name a look: {NAME_TEXT}")
        body = read_document(text, _read_look)
        look = Look(name=name, **body.model_dump())

        def change(book: LookBook) -> None:
            names = [each.name for each in book.looks]
            if name in names:
                book.looks[names.index(name)] = look
            elif len(names) >= MAX_LOOKS:
                raise ApiError(507, f"There are {MAX_LOOKS} looks already: DELETE some")
            else:
                book.looks.append(look)

        await self._change(change)
        return look

    async def move(self, name: str, place: int) -> LookBook:
        """Put a look at another place in the order, from 0. Raises ApiError 404, 409, 507."""

        def change(book: LookBook) -> None:
            look = book.find(name)
            book.looks.remove(look)
            book.looks.insert(place, look)

        return await self._change(change)

    async def delete(self, name: str) -> None:
        """Raises ApiError 404, 409, 507."""
        await self._change(lambda book: book.looks.remove(book.find(name)))

    async def put_midi(self, text: str) -> LookBook:
        """Keep these MIDI mappings in the place of all before. Raises ValidationFailed, ApiError 409, 507."""
        mappings = read_document(text, _read_midi)

        def change(book: LookBook) -> None:
            book.midi = mappings

        return await self._change(change)

    async def recall(self, stream: Stream, name: str, transition_s: float | None = None) -> list[Problem]:
        """Move a stream to a look, with the next beat if changes wait for it; what of it cannot be set.

        transition_s: in place of the look's own. Raises ApiError 404, 409.
        """
        look = (await self.all()).find(name)
        seconds = look.transition_s if transition_s is None else transition_s
        script = fade(stream, look.set, seconds, look.transition_method)

        def told() -> None:
            stream.notify({"type": "look_recalled", "look": look.name, "transition_s": seconds})

        return await self._replays.cue(stream, script, look.name, instead=True, on_begin=told)

    async def _change(self, change: Callable[[LookBook], None]) -> LookBook:
        def rewrite() -> LookBook:
            book = self._read()
            change(book)
            write_whole(self._path, book.plain())
            return book

        async with self._writing:
            return await asyncio.to_thread(rewrite)

    def _read(self) -> LookBook:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return LookBook(version=1)
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        try:
            return read_document(text, read_book)
        except ValidationFailed as error:
            raise self._damaged(error.problems[0]["msg"]) from error

    def _damaged(self, why: str) -> ApiError:
        logger.warning("The looks in %s cannot be read: %s", self._path, why)
        name = self._path.name
        return ApiError(409, f"The file {name} is damaged ({why}): mend it, or PUT /api/v1/looks anew")


def read_book(value: Any) -> LookBook:
    """All looks from JSON. Raises ValidationFailed, also for what no stream could ever be set to."""
    book = check(_BOOK, value, "body")
    names: set[str] = set()
    for number, look in enumerate(book.looks):
        place = ("body", "looks", number)
        if look.name in names:
            text = f"There is another look '{look.name}' before"
            raise ValidationFailed([Problem(type="not_unique", loc=[*place, "name"], msg=text, input=None)])
        names.add(look.name)
        check_settings(look.set, *place, "set")
    _check_midi(book.midi, "body", "midi")
    return book


def _read_look(value: Any) -> LookBody:
    look = check(_LOOK, value, "body")
    check_settings(look.set, "body", "set")
    return look


def _read_midi(value: Any) -> list[MidiMapping]:
    mappings = value.get("midi") if isinstance(value, dict) else value
    checked = check(_MIDI, mappings, "body", "midi")
    _check_midi(checked, "body", "midi")
    return checked


def _check_midi(mappings: Sequence[MidiMapping], *place: str) -> None:
    for number, mapping in enumerate(mappings):
        for part in ("source", "target"):
            values = getattr(mapping, part).model_dump(exclude={"channel", "encoding", "begin"})
            if sum(value is not None for value in values.values()) != 1:
                text = f"Exactly one of {', '.join(values)} is needed"
                raise _wrong(text, *place, number, part, kind="one_of")
        source, target = mapping.source, mapping.target
        if source.encoding is not None and (source.midi_cc is None or mapping.type != "continuous"):
            text = "Only a `continuous` mapping of a `midi_cc` has an encoding"
            raise _wrong(text, *place, number, "source", "encoding")
        if source.encoding == "14_bit" and (source.midi_cc or 0) > MAX_HIGH_CC:
            text = f"Controllers of 14 bit are 0 to {MAX_HIGH_CC}: the one 32 above has the low bits"
            raise _wrong(text, *place, number, "source", "midi_cc")
        if target.begin is not None and target.cue is None:
            raise _wrong("Only a cue list begins with a line", *place, number, "target", "begin")


def _wrong(text: str, *place: str | int, kind: str = "value_error") -> ValidationFailed:
    return ValidationFailed([Problem(type=kind, loc=[*place], msg=text, input=None)])
