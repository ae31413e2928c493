"""Cue lists: what is prepared to be set, at once or one after another (streams.md 5.6).

One JSON file per name, so that they survive a restart.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, TypeAdapter

from gateway.errors import ApiError, Problem, ValidationFailed
from gateway.http.validation import Integer, Number, Text, check, located, quoted
from gateway.recording.replay import Replays, Script, Step
from gateway.show.fades import fade
from gateway.show.files import NAME, NAME_TEXT, write_whole
from gateway.show.lines import read_document
from gateway.show.looks import Look, LookBook, Looks, Name, Seconds
from gateway.show.player import Beats, Clock, CuePlayer
from gateway.show.player import Seconds as SecondsClock
from gateway.show.settings import check_settings
from gateway.stream.parameters.tempo import QuantizeMode, Tempo
from gateway.stream.stream import Stream

logger = logging.getLogger(__name__)

MAX_LINES: Final = 1000  # of one list
MAX_LISTS: Final = 1000
MAX_AT: Final = 86_400.0  # seconds or beats

_SUFFIX: Final = ".json"

_Label = Annotated[Text, Field(max_length=200)]
_At = Annotated[Number, Field(ge=0, le=MAX_AT)]


class CueLine(BaseModel):
    """What happens at one moment, as a line of a take's data without `t`."""

    model_config = ConfigDict(extra="forbid")

    label: _Label | None = Field(None, description="what people call it")
    chunk: Annotated[Integer, Field(ge=0, le=1_000_000)] = Field(
        0, description="chunks after the cue; 0: with it"
    )
    at: _At = Field(0.0, description="seconds or beats after the beginning, by the list's `clock`")
    look: Name | None = Field(None, description="of the look that the stream moves to")
    transition_s: Seconds | None = Field(None, description="in place of the look's own")
    set: dict[str, Any] = Field({}, description="live parameters and their new values")
    event: Literal["reset"] | None = Field(None, description="reset: with fresh caches")
    jump: _Label | None = Field(None, description="label of the earlier line that comes next")
    times: Annotated[Integer, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="how often it jumps before it goes on; without it always"
    )


class CueList(BaseModel):
    """clock: what places the lines. chunk: their `chunk`; time, beat: their `at`, played on the server."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    clock: Literal["chunk", "time", "beat"] = "chunk"
    loop: StrictBool = Field(False, description="begin again after `length`")
    length: Annotated[Number, Field(gt=0, le=MAX_AT)] | None = Field(
        None, description="of a round, in seconds or beats"
    )
    lines: Annotated[list[CueLine], Field(min_length=1, max_length=MAX_LINES)]

    def plain(self) -> dict[str, Any]:
        """As somebody has written it."""
        return self.model_dump(exclude_defaults=True)


_LIST: Final[TypeAdapter[CueList]] = TypeAdapter(CueList)


class Cues:
    """The cue lists in one directory, and those that play; nothing outside it is read or written."""

    def __init__(self, directory: Path, replays: Replays, looks: Looks, tempo: Tempo) -> None:
        self._directory = directory
        self._replays = replays
        self._looks = looks
        self._tempo = tempo
        self._writing = asyncio.Lock()
        self._playing: dict[str, CuePlayer] = {}  # by stream id
        tempo.on_changed(self._tempo_changed)

    async def names(self) -> list[str]:
        """Those that there are, in order."""
        return await asyncio.to_thread(self._names)

    async def get(self, name: str) -> CueList:
        """Raises ApiError 404, and 409 for a file that somebody has damaged."""
        return await asyncio.to_thread(self._read, self._path(name))

    async def put(self, name: str, text: str) -> CueList:
        """Keep a list under a name, in place of the one before.

        Raises ValidationFailed for what is none, with lines; ApiError 404 (not a name), 507 (no room).
        """
        path = self._path(name)
        cues = read_document(text, read_list)
        async with self._writing:
            await asyncio.to_thread(self._write, path, cues)
        return cues

    async def delete(self, name: str) -> None:
        """Raises ApiError 404."""
        try:
            await asyncio.to_thread(self._path(name).unlink)
        except FileNotFoundError:
            raise _unknown(name) from None
        except OSError as error:
            raise ApiError(507, f"The cue list {name} cannot be removed: {error.strerror}") from error

    async def play(
        self, stream: Stream, name: str, label: str | None = None, begin: int | None = None
    ) -> list[Problem]:
        """Play a list: what the stream cannot have, or what is not there.

        label: only its lines with that label. begin: from this line on, 0 being the first. With a tempo
        it begins with the next beat. Raises ApiError 404, 409.
        """
        cues = await self.get(name)
        if label is not None:
            lines = [line for line in cues.lines if line.label == label]
            if not lines:
                raise ApiError(404, f"The cue list {name} has no line with the label '{quoted(label, 80)}'")
            cues = cues.model_copy(update={"lines": lines, "clock": "chunk"})
        lines = _in_order(cues)
        if begin is not None:
            if begin >= len(lines):
                raise ApiError(404, f"The cue list {name} has lines 0 to {len(lines) - 1}")
            if cues.clock == "chunk":
                first = lines[begin].chunk
                lines = [line.model_copy(update={"chunk": line.chunk - first}) for line in lines[begin:]]
        book = await self._book(lines)
        missing = _missing(cues.lines, book)
        if cues.clock == "chunk":
            self.stop(stream)
            return missing + await self._replays.cue(stream, _script(stream, lines, book), name)
        problems = await self._check(stream, lines, book)
        self._begin(stream, name, cues, lines, begin or 0)
        return missing + problems

    def playing(self, stream: Stream) -> dict[str, Any]:
        """What plays to a stream, as people are told."""
        player = self._playing.get(stream.id)
        return {"state": "stopped"} if player is None else player.status

    def stop(self, stream: Stream) -> None:
        """Let nothing play to a stream any more; what was set stays."""
        player = self._playing.get(stream.id)
        if player is not None:
            player.stop()

    def _begin(self, stream: Stream, name: str, cues: CueList, lines: Sequence[CueLine], first: int) -> None:
        if stream.stopped or stream.closed:
            return
        lookahead_s = (stream.state.timing.get("lookahead_ms") or 0.0) / 1000
        clock: Clock = SecondsClock()
        if cues.clock == "beat":
            clock = Beats(self._tempo, lookahead_s)
        period = _period(cues) if cues.loop else None

        async def prepare(number: int) -> Callable[[], None]:
            book = await self._book(lines[number : number + 1])  # as it is by now
            script = _script(stream, [lines[number].model_copy(update={"chunk": 0})], book)
            go, _ = await self._replays.prepared(stream, script, name, instead=True)
            return go

        before = self._playing.pop(stream.id, None)
        player = CuePlayer(stream, name, lines, period, clock, prepare, lambda p: self._ended(stream, p))
        self._playing[stream.id] = player
        mode: QuantizeMode = stream.state.timing.get("quantize_mode") or "none"
        if mode == "none" and cues.clock == "beat":
            mode = "beat"
        player.start(first, self._tempo.wait_s(mode, lookahead_s * 1000))
        if before is not None:
            before.stop()  # after its successor holds the stream

    def _ended(self, stream: Stream, player: CuePlayer) -> None:
        if self._playing.get(stream.id) is player:
            del self._playing[stream.id]
            stream.notify({"type": "cues_changed", "state": "stopped", "list": player.name})

    def _tempo_changed(self) -> None:
        for player in tuple(self._playing.values()):
            player.tempo_changed()

    async def _book(self, lines: Iterable[CueLine]) -> LookBook:
        named = any(line.look is not None for line in lines)
        return await self._looks.all() if named else LookBook(version=1)

    async def _check(self, stream: Stream, lines: Sequence[CueLine], book: LookBook) -> list[Problem]:
        """What of the lines the stream cannot have now."""
        problems: list[Problem] = []
        for number, line in enumerate(lines):
            _, refused = await self._replays.prepared(stream, _script(stream, [line], book), "")
            problems += located(refused, "lines", number)
        return problems

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ApiError(404, f"'{quoted(name, 64)}' cannot name a cue list: {NAME_TEXT}")
        return self._directory / f"{name}{_SUFFIX}"

    def _names(self) -> list[str]:
        stems = (path.name.removesuffix(_SUFFIX) for path in self._directory.glob(f"*{_SUFFIX}"))
        return sorted(stem for stem in stems if NAME.fullmatch(stem))

    def _read(self, path: Path) -> CueList:
        name = path.name.removesuffix(_SUFFIX)
        try:
            return read_document(path.read_text(encoding="utf-8"), read_list)
        except FileNotFoundError:
            raise _unknown(name) from None
        except (OSError, ValueError, ValidationFailed) as error:
            logger.warning("The cue list %s cannot be read: %s", path, error)
            why = f" ({error.problems[0]['msg']})" if isinstance(error, ValidationFailed) else ""
            text = f"The file of the cue list {name} is damaged{why}: PUT it again, or DELETE it"
            raise ApiError(409, text) from error

    def _write(self, path: Path, cues: CueList) -> None:
        if not path.exists() and len(self._names()) >= MAX_LISTS:
            raise ApiError(507, f"There are {MAX_LISTS} cue lists already: DELETE some")
        write_whole(path, cues.plain())


def read_list(value: Any) -> CueList:
    """A cue list from JSON. Raises ValidationFailed, also for what no stream could ever be set to."""
    cues = check(_LIST, value, "body")
    for number, line in enumerate(cues.lines):
        check_settings(line.set, "body", "lines", number, "set")
        _check_time(cues, number, line)
    if cues.clock == "chunk" and (cues.loop or cues.length is not None):
        raise _problem("A list that loops, or has a length, needs the clock 'time' or 'beat'", "clock")
    if cues.loop and _period(cues) <= 0:
        raise _problem("A list that loops needs a length: when it begins again", "length")
    if cues.length is not None and cues.length < max(line.at for line in cues.lines):
        raise _problem("The list is longer than that: a line begins after it", "length")
    return cues


def _check_time(cues: CueList, number: int, line: CueLine) -> None:
    place = ("lines", number)
    if cues.clock == "chunk":
        if line.at or line.jump is not None:
            text = "`at` and `jump` need the list's clock to be 'time' or 'beat'"
            raise _problem(text, *place, "jump" if line.jump is not None else "at")
    elif line.chunk:
        raise _problem(f"By the clock '{cues.clock}' a line has `at`, not `chunk`", *place, "chunk")
    if line.jump is not None:
        target = next((each for each in _in_order(cues) if each.label == line.jump), None)
        if target is None or target.at >= line.at:
            text = f"There is no earlier line with the label '{quoted(line.jump, 80)}'"
            raise _problem(text, *place, "jump")


def _problem(text: str, *place: str | int) -> ValidationFailed:
    return ValidationFailed([Problem(type="value_error", loc=["body", *place], msg=text, input=None)])


def _period(cues: CueList) -> float:
    return cues.length if cues.length is not None else max(line.at for line in cues.lines)


def _missing(lines: Sequence[CueLine], book: LookBook) -> list[Problem]:
    names = {look.name for look in book.looks}
    return [
        Problem(
            type="unknown_look", loc=["lines", n, "look"], msg=f"There is no look '{line.look}'", input=None
        )
        for n, line in enumerate(lines)
        if line.look is not None and line.look not in names
    ]


def _script(stream: Stream, lines: Sequence[CueLine], book: LookBook) -> Script:
    """What lines with a `chunk` do."""
    looks = {look.name: look for look in book.looks}
    steps: list[Step] = []
    length = 0
    for line in lines:
        part = _fade(stream, line, looks.get(line.look or ""))
        steps += [Step(line.chunk + step.chunk, 0.0, step.values) for step in part.steps if step.values]
        length = max(length, line.chunk + part.chunks)
    return Script({}, sorted(steps, key=lambda step: step.chunk), length, 0.0)


def _fade(stream: Stream, line: CueLine, look: Look | None) -> Script:
    values = {**(look.set if look else {}), **line.set}
    if line.event == "reset":
        values["reset_cache"] = True
    own = look.transition_s if look else 0.0
    seconds = own if line.transition_s is None else line.transition_s
    return fade(stream, values, seconds, look.transition_method if look else "linear")


def _in_order(cues: CueList) -> list[CueLine]:
    by_chunk = cues.clock == "chunk"
    return sorted(cues.lines, key=lambda line: float(line.chunk) if by_chunk else line.at)


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"There is no cue list '{name}': PUT /api/v1/cues/{name} makes one")
