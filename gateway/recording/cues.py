"""Cue lists: parameters that somebody has prepared, to be set at the press of a button (streams.md 5.6).

One JSON file per name, so that they survive a restart.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gateway.errors import ApiError, Problem, ValidationFailed
from gateway.http.validation import Integer, Text, check, quoted
from gateway.recording.replay import Replays, Script, Step
from gateway.stream.parameters.checks import FIELDS, name_of
from gateway.stream.seat import COMMANDS
from gateway.stream.stream import Stream

logger = logging.getLogger(__name__)

MAX_LINES: Final = 1000  # of one list
MAX_LISTS: Final = 1000
NAME_RULE: Final = r"[a-z0-9][a-z0-9_-]{0,63}"

_NAME: Final = re.compile(NAME_RULE)
_SUFFIX: Final = ".json"
_OF_OFFERS: Final = COMMANDS | {"pipeline_ids"}  # they come from whoever is connected


class CueLine(BaseModel):
    """What happens at one moment, as a line of a take's data without `t`."""

    model_config = ConfigDict(extra="forbid")

    label: Annotated[Text, Field(max_length=200)] | None = Field(None, description="what people call it")
    chunk: Annotated[Integer, Field(ge=0, le=1_000_000)] = Field(
        0, description="chunks after the cue; 0: with it"
    )
    set: dict[str, Any] = Field({}, description="live parameters and their new values")
    event: Literal["reset"] | None = Field(None, description="reset: with fresh caches")


class CueList(BaseModel):
    lines: Annotated[list[CueLine], Field(min_length=1, max_length=MAX_LINES)]

    def plain(self) -> dict[str, Any]:
        """As somebody has written it."""
        return self.model_dump(exclude_defaults=True)


_LIST: Final[TypeAdapter[CueList]] = TypeAdapter(CueList)


class Cues:
    """The cue lists in one directory; nothing outside it is read or written."""

    def __init__(self, directory: Path, replays: Replays) -> None:
        self._directory = directory
        self._replays = replays
        self._writing = asyncio.Lock()

    async def names(self) -> list[str]:
        """Those that there are, in order."""
        return await asyncio.to_thread(self._names)

    async def get(self, name: str) -> CueList:
        """Raises ApiError 404, and 409 for a file that somebody has damaged."""
        return await asyncio.to_thread(self._read, self._path(name))

    async def put(self, name: str, value: Any) -> CueList:
        """Keep a list under a name, in place of the one before.

        Raises ValidationFailed for what is none, ApiError 404 (not a name), 507 (no room).
        """
        path = self._path(name)
        cues = read_list(value)
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

    async def play(self, stream: Stream, name: str, label: str | None = None) -> list[Problem]:
        """Set what a list says, or only its lines with that label; what the stream cannot have.

        With a tempo it begins with the next beat. Raises ApiError 404, 409.
        """
        lines = (await self.get(name)).lines
        if label is not None:
            lines = [line for line in lines if line.label == label]
            if not lines:
                raise ApiError(404, f"The cue list {name} has no line with the label '{quoted(label, 80)}'")
        return await self._replays.cue(stream, _script(lines), name)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ApiError(
                404,
                f"'{quoted(name, 64)}' cannot name a cue list: use up to 64 of a-z, 0-9, - and _, beginning "
                "with a letter or digit",
            )
        return self._directory / f"{name}{_SUFFIX}"

    def _names(self) -> list[str]:
        stems = (path.name.removesuffix(_SUFFIX) for path in self._directory.glob(f"*{_SUFFIX}"))
        return sorted(stem for stem in stems if _NAME.fullmatch(stem))

    def _read(self, path: Path) -> CueList:
        name = path.name.removesuffix(_SUFFIX)
        try:
            return _LIST.validate_json(path.read_bytes())
        except FileNotFoundError:
            raise _unknown(name) from None
        except (OSError, ValueError) as error:
            logger.warning("The cue list %s cannot be read: %s", path, error)
            text = f"The file of the cue list {name} is damaged: PUT it again, or DELETE it"
            raise ApiError(409, text) from error

    def _write(self, path: Path, cues: CueList) -> None:
        """Whoever reads meanwhile, and a server that is killed, has the old list or the new one."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists() and len(self._names()) >= MAX_LISTS:
                raise ApiError(507, f"There are {MAX_LISTS} cue lists already: DELETE some")
            handle, temporary = tempfile.mkstemp(dir=self._directory, prefix=".cue-")
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    json.dump(cues.plain(), file, indent=1)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            text = f"Nothing can be kept in {self._directory}: {error.strerror}"
            raise ApiError(507, text) from error


def read_list(value: Any) -> CueList:
    """A cue list from JSON. Raises ValidationFailed, also for what no stream could ever be set to."""
    cues = check(_LIST, value, "body")
    for number, line in enumerate(cues.lines):
        for key, setting in line.set.items():
            _check_setting(number, key, setting)
    return cues


def _check_setting(number: int, key: str, setting: Any) -> None:
    place = ("body", "lines", number, "set", key)
    name = name_of(key)
    if name not in FIELDS or name in _OF_OFFERS:
        text = f"'{quoted(key)}' is no parameter that a stream can be set to: see docs/parameters.md"
        raise ValidationFailed([Problem(type="unknown_parameter", loc=[*place], msg=text, input=None)])
    if setting is not None:
        check(FIELDS[name], setting, *place)


def _script(lines: Sequence[CueLine]) -> Script:
    steps = [Step(line.chunk, 0.0, values) for line in _in_order(lines) if (values := _values(line))]
    return Script({}, steps, max(line.chunk for line in lines), 0.0)


def _in_order(lines: Iterable[CueLine]) -> list[CueLine]:
    return sorted(lines, key=lambda line: line.chunk)


def _values(line: CueLine) -> dict[str, Any]:
    return line.set | ({"reset_cache": True} if line.event == "reset" else {})


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"There is no cue list '{name}': PUT /api/v1/cues/{name} makes one")
