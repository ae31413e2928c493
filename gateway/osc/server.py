"""The UDP socket that OSC comes in at, and the way from there to streams."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.config import Osc
from gateway.errors import ApiError, Problem
from gateway.http.validation import quoted
from gateway.osc import addresses
from gateway.osc.datagrams import Datagrams
from gateway.osc.desk import Desk, Surroundings, Values
from gateway.osc.limits import Limits
from gateway.osc.wire import Bundle, Impulse, Message, OscError, decode
from gateway.pipelines.state import Pipelines
from gateway.stream.parameters.checks import fold
from gateway.stream.parameters.tempo import BPM_RANGE, MAX_BEATS_PER_BAR
from gateway.stream.parts import Role
from gateway.stream.stream import Stream
from gateway.stream.streams import ALL, Streams
from gateway.waiting import end

logger = logging.getLogger(__name__)

TICK_S: Final = 0.016  # values are gathered for so long, then applied as one update
FURTHEST_S: Final = 1.0  # ahead that a bundle's time may lie
_MAX_WAITING: Final = 256  # bundles whose time has not come
_MAX_RECENT: Final = 50
_MAX_LISTENERS: Final = 16
_MAX_UNREAD: Final = 1000  # commands of a listener that does not read
_TEMPO: Final = ("tempo/tap", "tempo/bpm", "tempo/beat")
_SHOW: Final = ("cue", "look")
_MAX_CUES: Final = 16  # of one stream in a tick
_HINTS: Final = ("plain_words",)  # what is no refusal

Play = Callable[[Stream, str], Awaitable[Sequence[Problem]]]


async def _nothing(stream: Stream, name: str) -> Sequence[Problem]:
    raise ApiError(404, "There are no cue lists and looks here")


@dataclass(frozen=True, slots=True)
class Show:
    """What is prepared, by name. Both raise ApiError."""

    cue: Play = _nothing
    look: Play = _nothing


@dataclass(slots=True)
class _Update:
    """What came for a stream since the last tick."""

    stream: Stream
    values: Values = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)  # by parameter
    show: dict[tuple[str, str], str] = field(default_factory=dict)  # addresses, by kind and name


class OscServer:
    """Parameters of streams by OSC.

    Nothing is ever answered: whoever sends may have written any address on it. To streams it is a control
    that always drives.
    """

    id = "osc"
    role: Role = "driver"
    label = "OSC"

    def __init__(
        self,
        settings: Osc,
        address: tuple[str, int] | None,
        streams: Streams,
        pipelines: Pipelines,
        show: Show = Show(),
    ) -> None:
        """address: where it listens; None: nowhere. show: what is prepared to be played."""
        self.address = address
        self._show = show
        self._streams = streams
        self._pipelines = pipelines
        self._limits = Limits(settings.allow)
        self._datagrams: Datagrams | None = None
        self._problem: str | None = None
        self._desks: dict[str, Desk] = {ALL: Desk()}
        self._updates: dict[str, _Update] = {}
        self._arrived = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()
        self._applying: asyncio.Task[None] | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=_MAX_RECENT)
        self._listeners: set[asyncio.Queue[dict[str, Any]]] = set()
        self.log_all_messages = False
        self.counts: Counter[str] = Counter()

    async def start(self) -> None:
        """Listen; where that cannot be, the server does without."""
        self._applying = asyncio.create_task(self._apply_all(), name="osc")
        if self.address is None:
            return
        host, port = self.address
        try:
            self._datagrams = await Datagrams.listen(host, port, self.receive)
        except OSError as error:
            self._problem = (
                f"UDP {host}:{port} cannot be had ({error.strerror}): set WANSTREAM_OSC to another port"
            )
            logger.warning("OSC is not heard: %s", self._problem)
            return
        if host == "localhost" or host.startswith("127.") or host == "::1":
            logger.info("OSC is heard on UDP %s:%d", host, port)
        else:
            logger.warning("OSC is heard on UDP %s:%d: whoever reaches it drives the streams", host, port)

    async def close(self) -> None:
        """Hear nothing more. Idempotent."""
        if self._datagrams is not None:
            self._datagrams.close()
            self._datagrams = None
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._applying is not None:
            await end(self._applying)

    def status(self) -> dict[str, Any]:
        """Body of GET /api/v1/osc/status."""
        host, port = self.address or (None, None)
        return {
            "enabled": self.address is not None,
            "listening": self._datagrams is not None,
            "host": host,
            "port": port,
            "log_all_messages": self.log_all_messages,
            "problem": self._problem,
            "counts": dict(self.counts),
            "recent": list(self._recent),
        }

    def listen(self) -> AsyncIterator[dict[str, Any]]:
        """What is set from now on, message by message. Raises ApiError 503."""
        if len(self._listeners) >= _MAX_LISTENERS:
            text = f"At most {_MAX_LISTENERS} may listen to OSC: close another one"
            raise ApiError(503, text, {"Retry-After": "5"})
        return self._commands()

    async def _commands(self) -> AsyncIterator[dict[str, Any]]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_MAX_UNREAD)
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    def notify(self, message: Mapping[str, Any]) -> None:
        """Nobody is told anything by OSC."""

    def receive(self, datagram: bytes, sender: str) -> None:
        """Take a datagram; whatever it is, it is counted and never raises."""
        try:
            self._limits.check(sender, len(datagram))
            bundles = decode(datagram)
        except OscError as error:
            self._refuse(error.reason, str(error) if error.reason == "denied" else "")
            return
        for bundle in bundles:
            self._schedule(bundle)

    def _schedule(self, bundle: Bundle) -> None:
        ahead = 0.0 if bundle.due is None else bundle.due - time.time()
        if ahead <= 0:
            self._take(bundle)
        elif ahead > FURTHEST_S or len(self._timers) >= _MAX_WAITING:
            self.counts["time"] += 1
            self._take(bundle)
        else:
            self._later(ahead, lambda: self._take(bundle))

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        def due() -> None:
            self._timers.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(delay_s, due)
        self._timers.add(timer)

    def _take(self, bundle: Bundle) -> None:
        """Gather a bundle's values: all of it is applied with the same tick."""
        for message in bundle.messages:
            try:
                self._take_message(message)
            except OscError as error:
                self._refuse(error.reason, message.address)
                if self.log_all_messages:
                    logger.info("OSC %s: %s", quoted(message.address, 120), error)

    def _take_message(self, message: Message) -> None:
        target, name = addresses.split(message.address, self._find)
        if name in _TEMPO:
            value = self._change_tempo(name, message)
        elif name.startswith(tuple(f"{kind}/" for kind in _SHOW)):
            value = self._wish(target, name, message)
        else:
            value = self._change_streams(target, name, message)
        self.counts["applied"] += 1
        self._tell(name, value)
        if self.log_all_messages:
            logger.info("OSC %s %s", message.address, quoted(str(message.arguments), 200))

    def _change_tempo(self, name: str, message: Message) -> Any:
        """It is one for all streams, whatever the address says."""
        key, _ = addresses.find(name)
        value, tempo = key.convert(message.arguments), self._streams.tempo
        if name == "tempo/tap":
            if value:
                tempo.tap()
        elif name == "tempo/beat":
            if not 1 <= value < MAX_BEATS_PER_BAR + 1:
                raise OscError("range", f"Beats of a bar are 1 to {MAX_BEATS_PER_BAR}, not {value:g}")
            tempo.follow("osc", value)
        elif BPM_RANGE[0] <= value <= BPM_RANGE[1]:
            tempo.enable("osc", value)
        else:
            raise OscError(
                "range", f"Beats per minute are {BPM_RANGE[0]:g} to {BPM_RANGE[1]:g}, not {value:g}"
            )
        return value

    def _wish(self, target: str, name: str, message: Message) -> bool:
        """Remember to play a cue list, or move to a look, with the next tick; whether it is to be."""
        key, (wished,) = addresses.find(name)
        wanted: bool = key.convert(message.arguments)
        for stream in self._of(target) if wanted else ():
            show = self._updates.setdefault(stream.id, _Update(stream)).show
            if len(show) >= _MAX_CUES:
                raise OscError("rate", f"More than {_MAX_CUES} cues at once")
            show[name.partition("/")[0], wished] = message.address
            self._arrived.set()
        return wanted

    def _of(self, target: str) -> list[Stream]:
        return list(self._streams) if target == ALL else [self._find(target)]

    def _change_streams(self, target: str, name: str, message: Message) -> Any:
        """Gather what a message sets; the value that it brought."""
        streams = self._of(target)
        value: Any = None
        if target == ALL:  # for streams to come, and to be refused as a whole
            _, value = self._desks[target].read(name, message.arguments, self._around(None))
        for stream in streams:
            values, value = self._desk(stream.id).read(name, message.arguments, self._around(stream))
            update = self._updates.setdefault(stream.id, _Update(stream))
            fold(update.values, values)
            update.addresses |= dict.fromkeys(values, message.address)
        if self._updates:
            self._arrived.set()
        return value

    def _find(self, stream_id: str) -> Stream:
        try:
            return self._streams.find(stream_id)
        except ApiError as error:
            raise OscError("address", error.detail) from error

    def _desk(self, stream_id: str) -> Desk:
        desk = self._desks.get(stream_id)
        if desk is None:
            alive = {ALL, *(stream.id for stream in self._streams)}
            self._desks = {key: value for key, value in self._desks.items() if key in alive}
            desk = self._desks[stream_id] = self._desks[ALL].copy()
        return desk

    def _around(self, stream: Stream | None) -> Surroundings:
        return Surroundings(
            prompts=lambda: [] if stream is None else stream.state.effective["prompts"] or [],
            adapters=self._adapters,
        )

    def _adapters(self) -> list[str]:
        loaded = self._pipelines.loaded
        adapters = (loaded.lora_adapters() if loaded else None) or []
        return [adapter["path"] for adapter in adapters if adapter["merge_mode"] == "runtime_peft"]

    def _refuse(self, reason: str, address: str) -> None:
        self.counts[reason] += 1
        self._recent.append({"time": time.time(), "address": quoted(address, 120), "reason": reason})

    def _tell(self, key: str, value: Any) -> None:
        command = {"type": "osc_command", "key": key, "value": True if value is Impulse.IMPULSE else value}
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(command)

    async def _apply_all(self) -> None:
        """Apply what was gathered, tick by tick; what comes in the meantime is gathered for the next."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(TICK_S)
            self._arrived.clear()
            updates, self._updates = self._updates, {}
            await asyncio.gather(*(self._apply(update) for update in updates.values()))

    async def _apply(self, update: _Update) -> None:
        try:
            problems = await update.stream.update(update.values, by=self) if update.values else []
            for problem in problems:
                self._refuse_problem(problem, update.addresses.get(_parameter(problem), ""))
            for (kind, name), address in update.show.items():
                play = self._show.cue if kind == "cue" else self._show.look
                await self._play(play(update.stream, name), address)
        except Exception:  # task boundary: later messages must go on to be heard
            logger.exception("[%s] Parameters by OSC could not be applied", update.stream.id)

    async def _play(self, played: Awaitable[Sequence[Problem]], address: str) -> None:
        try:
            for problem in await played:
                self._refuse_problem(problem, address)
        except ApiError as error:
            logger.debug("OSC %s: %s", address, error.detail)
            self._refuse("address", address)

    def _refuse_problem(self, problem: Problem, address: str) -> None:
        if problem["type"] not in _HINTS:
            self._refuse("refused", address)


def _parameter(problem: Problem) -> str:
    return str(problem["loc"][0]) if problem["loc"] else ""
