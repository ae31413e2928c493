"""A take's parameters, given to a stream again: chunk by chunk, or by the clock (streams.md 5.6)."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gateway.errors import ApiError, Problem
from gateway.recording.sidecar import Line
from gateway.stream.parameters.checks import Validated
from gateway.stream.parameters.state import ChunkParameters
from gateway.stream.parts import Role
from gateway.stream.stream import Stream
from gateway.threads import in_parameter_thread

logger = logging.getLogger(__name__)

Clock = Literal["chunk", "time"]

MAX_LINES: Final = 20_000
_NOT_REPLAYED: Final = frozenset({"paused", "recording"})  # by the chunk, a pause is no change


@dataclass(frozen=True, slots=True)
class Step:
    """What is set at one moment. chunk: counted from the script's first; at_s: from its first picture."""

    chunk: int
    at_s: float
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Script:
    """What a replay does. begin: the parameters at its start; chunks, seconds: its length."""

    begin: dict[str, Any]
    steps: list[Step]
    chunks: int
    seconds: float


def read_script(lines: Sequence[Any], clock: Clock) -> Script:
    """A script from a take's lines, of which the head may be missing. Raises ApiError 422."""
    if len(lines) > MAX_LINES:
        raise ApiError(422, f"A replay has at most {MAX_LINES} lines, these are {len(lines)}")
    bad = next((n for n, line in enumerate(lines) if not _is_line(line)), None)
    if bad is not None:
        raise ApiError(422, f"Line {bad} is none of a take's: numbers `t` and `chunk`, and `set` or `event`")
    head = lines[0] if lines and "format" in lines[0] else {}
    first = head.get("chunk", 0)
    steps = [
        Step(line.get("chunk", first) - first, float(line.get("t", 0.0)), values)
        for line in lines
        if (values := _values(line, clock))
    ]
    begin = {k: v for k, v in head.get("parameters", {}).items() if k not in _NOT_REPLAYED}
    last = lines[-1] if lines else {}
    return Script(begin, steps, last.get("chunk", first) - first, float(last.get("t", 0.0)))


def _is_line(line: Any) -> bool:
    return (
        isinstance(line, dict)
        and isinstance(line.get("t", 0.0), int | float)
        and isinstance(line.get("chunk", 0), int)
        and isinstance(line.get("set", {}), dict)
        and isinstance(line.get("parameters", {}), dict)
    )


def _values(line: Line, clock: Clock) -> dict[str, Any]:
    """What a line sets."""
    if "set" in line:
        return {key: value for key, value in line["set"].items() if key not in _NOT_REPLAYED}
    match line.get("event"):
        case "reset":
            return {"reset_cache": True}
        case "pause" | "resume" if clock == "time":
            return {"paused": line["event"] == "pause"}
    return {}


class Replay:
    """A control and a listener of its stream; it ends by itself. What others set meanwhile stays theirs."""

    id = "replay"
    role: Role = "driver"

    def __init__(self, stream: Stream, label: str, on_end: Callable[["Replay"], None]) -> None:
        self.label = label
        self._stream = stream
        self._on_end = on_end
        self._steps: deque[tuple[Step, Validated]] = deque()
        self._chunks = 0
        self._seconds = 0.0
        self._begin: int | None = None  # number of the first chunk
        self._task: asyncio.Task[None] | None = None
        self._over = False

    async def prepare(self, script: Script, *, reset: bool = False) -> list[Problem]:
        """Check everything; what will not be set, since the stream cannot have it."""
        begin = script.begin | ({"reset_cache": True} if reset else {})
        steps = [Step(0, 0.0, begin), *script.steps] if begin else script.steps
        checked = await in_parameter_thread(self._check, steps)
        self._steps = deque(checked)
        self._chunks = script.chunks
        self._seconds = script.seconds
        return [problem for _, validated in checked for problem in validated.problems]

    def begin(self, clock: Clock, speed: float = 1.0) -> None:
        """Set what was prepared, from the next chunk on."""
        self._take_over()
        self._stream.add_control(self)
        if clock == "chunk":
            self._stream.add_listener(self)
        else:
            self._task = asyncio.create_task(self._run(speed), name=f"replay-{self._stream.id}")

    def set_first(self) -> bool:
        """Set what belongs to the first chunk, also when none is made now; whether more is to come."""
        self._take_over()
        while self._steps and self._steps[0][0].chunk <= 0:
            self._apply(*self._steps.popleft())
        return bool(self._steps)

    def _take_over(self) -> None:
        """From now on it counts what others set."""
        for key in {key for _, validated in self._steps for key in validated.values}:
            self._stream.changed_by.pop(key, None)

    def _check(self, steps: Sequence[Step]) -> list[tuple[Step, Validated]]:
        return [(step, self._stream.state.check(step.values)) for step in steps]

    def stop(self) -> None:
        """Set nothing more. Idempotent."""
        if self._over:
            return
        self._over = True
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._stream.remove_listener(self)
        self._stream.remove_control(self)
        self._on_end(self)

    async def _run(self, speed: float) -> None:
        started = asyncio.get_running_loop().time()
        while self._steps:
            await self._until(started + self._steps[0][0].at_s / speed)
            self._apply(*self._steps.popleft())
        await self._until(started + self._seconds / speed)
        self.stop()

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))

    def _apply(self, step: Step, validated: Validated) -> None:
        """Set what nobody else has set since the start."""
        changed_by = self._stream.changed_by
        free = {k: v for k, v in validated.values.items() if changed_by.get(k, self.id) == self.id}
        if free:
            self._stream.apply(replace(validated, values=free, problems=[], remarks=[]), self)

    # As a control.

    def notify(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "stream_stopped":
            self.stop()

    # As a listener.

    def before_chunk(self, number: int) -> None:
        if self._begin is None:
            self._begin = number
        due = number - self._begin
        while self._steps and self._steps[0][0].chunk <= due:
            self._apply(*self._steps.popleft())
        if not self._steps and due >= self._chunks:
            self.stop()

    def chunk_taken(self, number: int, chunk: ChunkParameters) -> None:
        """The chunk has what it was to have."""

    def happened(self, event: str, details: Mapping[str, Any] | None = None) -> None:
        """Of no consequence."""


class Replays:
    """All replays of this gateway: at most one per stream."""

    def __init__(self) -> None:
        self._running: dict[str, Replay] = {}  # by stream id

    async def start(
        self, stream: Stream, script: Script, label: str, clock: Clock, speed: float, *, reset: bool
    ) -> list[Problem]:
        """Begin a replay; what of it cannot be set. Raises ApiError 409: there is one already."""
        if stream.id in self._running:
            raise ApiError(409, f"Stream {stream.id} has a replay already: DELETE it first")
        replay = Replay(stream, label, lambda ended: self._ended(stream, ended))
        self._running[stream.id] = replay
        try:
            problems = await replay.prepare(script, reset=reset)
        except BaseException:
            self._forget(stream, replay)
            raise
        if self._running.get(stream.id) is replay:  # nobody has stopped it meanwhile
            replay.begin(clock, speed)
            logger.info("[%s] Replaying %s by the %s", stream.id, label, clock)
            stream.notify({"type": "replay_changed", "state": "running", "of": label})
        return problems

    async def cue(
        self,
        stream: Stream,
        script: Script,
        label: str,
        *,
        instead: bool = False,
        on_begin: Callable[[], object] = lambda: None,
    ) -> list[Problem]:
        """Set what a cue says, with the next beat if there is a tempo; what of it cannot be set.

        What it sets in later chunks takes the place of the replay that runs. instead: so does a cue without
        any. on_begin: called when it takes effect.
        """
        go, problems = await self.prepared(stream, script, label, instead=instead)

        def begin() -> None:
            go()
            on_begin()

        stream.quantizer.call(begin)
        return problems

    async def prepared(
        self, stream: Stream, script: Script, label: str, *, instead: bool = False
    ) -> tuple[Callable[[], None], list[Problem]]:
        """A cue to be set at any moment, by a call; and what of it cannot be set."""
        replay = Replay(stream, label, lambda ended: self._ended(stream, ended))
        problems = await replay.prepare(script)
        return lambda: self._go(stream, replay, instead), problems

    def _go(self, stream: Stream, replay: Replay, instead: bool) -> None:
        if stream.stopped or stream.closed:
            return
        logger.info("[%s] The cue %s", stream.id, replay.label)
        if instead:
            self.stop(stream)
        stream.worker.note_change()
        if replay.set_first():
            self.stop(stream)
            self._running[stream.id] = replay
            replay.begin("chunk")
            stream.notify({"type": "replay_changed", "state": "running", "of": replay.label})

    def stop(self, stream: Stream) -> None:
        """End a stream's replay; none is fine."""
        replay = self._running.get(stream.id)
        if replay is not None:
            replay.stop()

    def _ended(self, stream: Stream, replay: Replay) -> None:
        self._forget(stream, replay)
        logger.info("[%s] The replay of %s is over", stream.id, replay.label)
        stream.notify({"type": "replay_changed", "state": "stopped", "of": replay.label})

    def _forget(self, stream: Stream, replay: Replay) -> None:
        if self._running.get(stream.id) is replay:
            del self._running[stream.id]
