"""One running generation: its parameters and its worker, and who feeds, sees and controls it."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from gateway.errors import Problem
from gateway.logs import current_session
from gateway.pipelines.state import Pipelines
from gateway.stream.access import StreamTokens
from gateway.stream.encoding.encoders import Encoders, Encoding
from gateway.stream.parameters.checks import Validated
from gateway.stream.parameters.news import ParameterNews
from gateway.stream.parameters.quantizer import Quantizer
from gateway.stream.parameters.state import ParameterState, check_messages
from gateway.stream.parts import Control, Listener, Sink, Source, parameter_error
from gateway.stream.pictures.hub import Hub
from gateway.stream.pictures.video_input import Feed, VideoInput
from gateway.stream.seat import COMMANDS, Drivers, Seat
from gateway.stream.worker import StreamObserver, StreamStoppedError, StreamWorker
from gateway.threads import in_parameter_thread

logger = logging.getLogger(__name__)

_LOST_S = 2.0  # without a picture: another source need not wait for this one
VIEWER_KINDS: Final = frozenset({"webrtc", "whep", "mpegts", "mjpeg"})  # others record, show locally, publish
VIDEO_VIEWERS: Final = (VIEWER_KINDS - {"mjpeg"}) | {"whip_out"}  # kinds of sinks that are sent encoded video
Phase = Literal["waiting", "idle", "running", "paused", "ended"]

_WAYS = ("osc", "replay")  # that are controls of their own; the others are peers
_SOURCE_LOOK_S = 0.5  # how often it is seen whether pictures still arrive
_FAREWELL_S = 2.0  # between `stream_stopped` and the end: for whoever is told to read why


class Stream:
    """One running generation: one source at a time, any number of sinks and controls.

    It lives as long as somebody holds it, and then for `linger_s`; made by `Streams` only.
    Who wants pictures joins `output`, who wants video packets subscribes to `encoders`.
    """

    def __init__(
        self,
        stream_id: str,
        pipelines: Pipelines,
        state: ParameterState,
        observer: StreamObserver,
        linger_s: float = 0.0,
        drivers: Drivers = "one",
        encoding: Encoding | None = None,
        stays: bool = False,
    ) -> None:
        """stays: it waits for another pipeline when its own is unloaded; others end."""
        self.id = stream_id
        self.linger_s = linger_s
        self.kept = False  # until it is deleted, or for `linger_s` without anybody
        self.tokens: StreamTokens | None = None  # of a private stream
        self.created_at = time.time()
        self._pipelines = pipelines
        self.state = state
        self.input = VideoInput(lambda: state.input_mode == "video")
        if pipelines.loaded is not None:
            self.input.expect_for(pipelines.loaded)
        self.output = Hub(
            lambda: self.input.fps if state.input_mode == "video" else None,
            observer.input_shown,
            lambda seconds: self.worker.change_shown(seconds),
        )
        self.encoders = Encoders(self.output, encoding or Encoding(), on_demand=self.begin)
        self.started = time.monotonic()
        self.stopped = False  # over, and everybody was told
        self.failed = False  # it ended with an error
        self.closed = False
        self._sources: list[tuple[Source, Feed]] = []  # the last one is wanted, earlier ones fill in for it
        self._source_taken_at = float("-inf")
        self._sinks: list[Sink] = []
        self._controls: list[Control] = []
        self._owner: Control | None = None
        self._told_source: Mapping[str, Any] = {"kind": "none"}
        self._source_watch: asyncio.TimerHandle | None = None
        self.seat = Seat(drivers, lambda: self.controls)
        self._news = ParameterNews(lambda: self.controls)
        self.quantizer = Quantizer(
            lambda: state.timing, lambda values: self._apply_now(Validated(values)), self.notify
        )
        self._holders: dict[object, Callable[[], bool]] = {}
        self._on_closed: list[Callable[[], object]] = []
        self.record: Callable[[bool], Coroutine[Any, Any, None]] | None = None  # begins or ends a take
        self._recording: asyncio.Task[None] | None = None
        self.changed_by: dict[str, str] = {}  # the way by which each parameter came last
        self._end: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self.pictures_in: Counter[str] = Counter()  # by kind of source
        self.sources_lost: Counter[str] = Counter()
        self.on_wish: Callable[[Stream, Mapping[str, Any]], list[Problem]] = lambda _, __: []
        self._updating = asyncio.Lock()  # updates take effect in the order in which they came
        self._running: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self.worker = StreamWorker(
            self.id,
            pipelines,
            state,
            self.input,
            self.output,
            lambda: bool(self._sources),
            self.notify,
            observer,
            stays,
        )
        self.worker.set_paused(state.paused)

    @property
    def has_live_source(self) -> bool:
        """Whether its source has sent a picture, or was taken, a moment ago."""
        newest = max(self._source_taken_at, self.input.last_arrival)
        return bool(self._sources) and time.monotonic() - newest < _LOST_S

    @property
    def phase(self) -> Phase:
        """`waiting`: for a pipeline. `idle`: nobody looks, so nothing is generated."""
        if self.stopped or self.closed:
            return "ended"
        if self._pipelines.loaded is None:
            return "waiting"
        if self.state.paused:
            return "paused"
        return "idle" if self._running is None or not self.output.wanted else "running"

    def take_source(self, source: Source) -> None:
        """Take input pictures from `source`; the one before goes on until the first of them is there."""
        self._source_taken_at = time.monotonic()
        kind = source.info["kind"]
        feed = self.input.feed(
            lambda: self._stop_sources_before(source), lambda: self.pictures_in.update((kind,))
        )
        self._sources.append((source, feed))
        source.start(feed)
        self.worker.tell("source", **source.info)
        self._watch_source()

    async def look_at_source(self) -> None:
        """Use its source, unless somebody has chosen whether pictures are used."""
        if not self.state.input_mode_chosen:
            await self.update({"input_mode": "video"})

    @property
    def source_info(self) -> Mapping[str, Any]:
        """What people are told of the source."""
        source = self.source
        if source is None:
            return {"kind": "none"}
        return {**source.info, "state": "live" if self.has_live_source else "lost"}

    def _watch_source(self) -> None:
        """Tell of another source, and of one that falls silent or comes back."""
        if self.closed:
            return
        before, now = self._told_source, self.source_info
        key = ("kind", "name", "state")
        if [before.get(name) for name in key] != [now.get(name) for name in key]:
            self._told_source = now
            # Who made the stream knows its own camera, and its clients have never heard this message.
            is_camera = {before["kind"], now["kind"]} <= {"camera", "none"}
            for control in self._controls:
                if not (is_camera and control is self._owner):
                    control.notify({"type": "source_changed", **now})
        if self._source_watch is not None:
            self._source_watch.cancel()
            self._source_watch = None
        if self._sources:
            loop = asyncio.get_running_loop()
            self._source_watch = loop.call_later(_SOURCE_LOOK_S, self._watch_source)

    def drop_source(self, source: Source) -> None:
        """`source` has ended; of no consequence when another one has taken its place."""
        self._sources = [pair for pair in self._sources if pair[0] is not source]
        self._watch_source()

    def source_lost(self, text: str) -> None:
        """The source cannot go on; the last picture stands."""
        if self.source is not None:
            self.sources_lost[self.source.info["kind"]] += 1
        self.notify(parameter_error([Problem(loc=["source"], msg=text, type="source_lost")]))

    def stop_sources(self) -> None:
        """Take no more input pictures."""
        stopped, self._sources = self._sources, []
        for source, feed in stopped:
            feed.close()
            source.stop()

    def _stop_sources_before(self, source: Source) -> None:
        position = next((i for i, pair in enumerate(self._sources) if pair[0] is source), 0)
        later = self._sources[position:]
        self._sources = self._sources[:position]
        self.stop_sources()
        self._sources = later

    def add_control(self, control: Control, *, is_owner: bool = False) -> None:
        """From now on tell `control` what becomes of the stream. is_owner: the stream's source is its own."""
        self._controls.append(control)
        if is_owner:
            self._owner = control
        self.seat.join(control)

    def remove_control(self, control: Control) -> None:
        """`control` has left. Idempotent."""
        if control in self._controls:
            self._controls.remove(control)
            self.seat.leave(control)

    def add_listener(self, listener: Listener) -> None:
        """From now on tell `listener` of every chunk."""
        self.worker.listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """`listener` has heard enough. Idempotent."""
        if listener in self.worker.listeners:
            self.worker.listeners.remove(listener)

    def add_sink(self, sink: Sink) -> None:
        """Count `sink` among those who take pictures; when the stream ends it is closed first."""
        before = self.viewers
        self._sinks.append(sink)
        self._tell_viewers(before)

    def remove_sink(self, sink: Sink, reason: str | None = "left") -> None:
        """`sink` has left. Idempotent. reason: for the count of viewers; None: it is in there already."""
        before = self.viewers
        if sink in self._sinks:
            self._sinks.remove(sink)
            if self.viewers != before and reason is not None:
                ends = self.stopped or self.closed
                self.encoders.observer.viewer_closed("evicted" if ends else reason)
            self._tell_viewers(before)

    @property
    def viewers(self) -> int:
        """How many watch, beside the peer that made the stream."""
        return sum(sink.info["kind"] in VIEWER_KINDS and not sink.info.get("owner") for sink in self._sinks)

    @property
    def video_viewers(self) -> int:
        """How many are sent encoded video."""
        return sum(sink.info["kind"] in VIDEO_VIEWERS for sink in self._sinks)

    def _tell_viewers(self, before: int) -> None:
        if self.viewers != before:
            self.notify({"type": "viewers_changed", "viewers": self.viewers})

    @property
    def source(self) -> Source | None:
        """Where input pictures are to come from."""
        return self._sources[-1][0] if self._sources else None

    @property
    def sinks(self) -> Sequence[Sink]:
        return tuple(self._sinks)

    @property
    def controls(self) -> Sequence[Control]:
        return tuple(self._controls)

    def hold(self, holder: object, is_connected: Callable[[], bool] = lambda: True) -> None:
        """Keep the stream alive until `release`. is_connected: else others may have the stream's room."""
        self._holders[holder] = is_connected
        if not self.stopped:
            self._cancel_end()

    def release(self, holder: object, grace_s: float = 0.0) -> None:
        """`holder` has no more need of the stream, which ends after the last one. Idempotent.

        grace_s: how long it is to wait at least for somebody to hold it again.
        """
        was_held = bool(self._holders)
        self._holders.pop(holder, None)
        if was_held and not self._holders:
            self.linger(grace_s)

    def linger(self, grace_s: float = 0.0) -> None:
        """End the stream in `linger_s`, or `grace_s` if that is longer, unless somebody comes to hold it."""
        if self.stopped or self.closed:  # it ends anyway
            return
        self._cancel_end()
        wait_s = max(self.linger_s, grace_s)
        if wait_s > 0:
            loop = asyncio.get_running_loop()
            self._end = loop.call_later(wait_s, self._end_unheld)
        else:
            self._end_unheld()

    @property
    def may_be_evicted(self) -> bool:
        """Whether nobody is connected to it who holds it or looks at it."""
        if self._holders:
            return not any(is_connected() for is_connected in self._holders.values())
        return not self._sinks

    def on_closed(self, call: Callable[[], object]) -> None:
        """Call it when everything is freed."""
        self._on_closed.append(call)

    def forget(self, call: Callable[[], object]) -> None:
        """Undo `on_closed`. Idempotent."""
        if call in self._on_closed:
            self._on_closed.remove(call)

    def introduction(self, control: Control) -> dict[str, Any]:
        """A message: what somebody who has joined needs to know; then come the changes."""
        return {
            "type": "stream_state",
            "streamId": self.id,
            "state": self.phase,
            "pipeline_id": self._pipelines.loaded.spec.id if self._pipelines.loaded else None,
            "role": self.seat.role_of(control),
            "driver": self.seat.driver,
            "viewers": self.viewers,
            "parameters": self.state.effective,
        }

    def notify(self, message: Mapping[str, Any]) -> None:
        """Tell all controls."""
        for control in self.controls:
            control.notify(message)

    def always_run(self) -> None:
        """Generate whether or not somebody looks."""
        self.begin()
        self._drain = asyncio.create_task(self._look_away(), name=f"drain-{self.id}")

    async def _look_away(self) -> None:
        sink = self.output.join()
        while await sink.next() is not None:
            pass

    def begin(self) -> None:
        """Generate from now on: somebody wants to see pictures. Idempotent."""
        if self._running is None and not self.closed:
            self._running = asyncio.create_task(self._run(), name=f"worker-{self.id}")

    async def _run(self) -> None:
        current_session.set(self.id)  # for the lines of the serving side, which knows no streams
        error: str | None
        try:
            if recording := self._obey_recording_wish():
                await recording  # begins before the first chunk, so that the take has it
            await self.worker.run()
            error = None
        except StreamStoppedError as stopped:
            error = stopped.error_message
        except Exception:  # task boundary: the controls are told, the trace is in the log
            logger.exception("[%s] The stream's worker failed", self.id)
            error = "internal error, see the server's log"
        self.stop(error)

    async def update(self, values: dict[str, Any], by: Control | None = None) -> list[Problem]:
        """Apply a partial update; returns what was wrong with it. by: None: it came over REST."""
        async with self._updating:
            validated = await in_parameter_thread(self.state.check, values)
            problems = self._apply_by(validated, by)
        refused = {problem["loc"][0] for problem in problems if problem["loc"]}
        if self.seat.admits(by):
            self._news.add({k: v for k, v in values.items() if k not in refused | COMMANDS}, by)
        return problems

    async def update_by_messages(
        self, messages: Sequence[str | bytes | None], together: bool, by: Control | None = None
    ) -> list[list[Problem]]:
        """Apply JSON messages, each by itself or all as one update. None: one that was too large."""
        async with self._updating:
            checked = await in_parameter_thread(check_messages, self.state, messages, together)
            reports = []
            for validated in checked:
                reports.append(self._apply_by(validated, by))
                if self.seat.admits(by):
                    self._news.add({k: v for k, v in validated.values.items() if k not in COMMANDS}, by)
            return reports

    def apply(self, validated: Validated, by: Control) -> list[Problem]:
        """Apply checked parameters at once; for a listener, before a chunk takes them."""
        self.changed_by |= dict.fromkeys(validated.values, _way_of(by))
        self._news.add(validated.values, by)
        return self._apply(validated)

    def _apply_by(self, validated: Validated, by: Control | None) -> list[Problem]:
        """Apply what `by` may do; what was wrong with it."""
        commands = {name: validated.values.pop(name) for name in COMMANDS & validated.values.keys()}
        problems = self.seat.command(commands, by) if commands and by is not None else []
        if not (validated.values or validated.problems or validated.remarks):
            return problems
        if by is not None and not self.seat.admits(by):
            return [self.seat.refusal(by)]
        self.changed_by |= dict.fromkeys(validated.values, _way_of(by))
        now = self.quantizer.hold(validated.values, by)
        return problems + self._apply_now(replace(validated, values=now))

    def _apply_now(self, validated: Validated) -> list[Problem]:
        self.worker.note_change()
        return self._apply(validated)

    def _apply(self, validated: Validated) -> list[Problem]:
        problems = self.state.apply(validated)
        if self.state.paused != self.output.paused:
            self.worker.set_paused(self.state.paused)
        if self.state.input_mode != "video":
            self.input.clear()
        if self.state.paused or self.state.input_mode != "video":
            self.input.wake()
        if self.state.reset_pending:
            self.output.clear()
        if self.state.outdated:
            self.worker.begin_again()
        self._obey_recording_wish()
        return problems + self.fulfil()

    def fulfil(self) -> list[Problem]:
        """Have the sinks and the source changed as parameters ask for; what cannot be had here."""
        wishes = self.state.take_wishes()
        return self.on_wish(self, wishes) if wishes else []

    def _obey_recording_wish(self) -> "asyncio.Task[None] | None":
        wish = self.state.take_recording_wish()
        if wish is None or self.record is None:
            return None
        self._recording = asyncio.create_task(self.record(wish), name=f"record-{self.id}")
        return self._recording

    def stop(self, error_message: str | None, *, reconnect: bool = False) -> None:
        """Tell all controls that the stream is over; it closes when they could read that. Idempotent.

        reconnect: a new one can be had at the same address, from another server.
        """
        if self.stopped or self.closed:
            return
        self.stopped = True
        message: dict[str, Any] = {"type": "stream_stopped"}
        if reconnect:
            message["reconnect"] = True
        if error_message:
            self.failed = True
            message["error_message"] = error_message
        self.notify(message)
        self._cancel_end()
        reason = error_message or "it is over"
        self._end = asyncio.get_running_loop().call_later(_FAREWELL_S, self._begin_to_close, reason)

    async def close(self, reason: str = "it is not needed any more") -> None:
        """End everything: sinks, controls, the source, the worker. Idempotent.

        Goes on when the caller is cancelled: a page that is left hangs up before its DELETE is answered.
        """
        await asyncio.shield(self._begin_to_close(reason))

    def _begin_to_close(self, reason: str) -> "asyncio.Task[None]":
        if self._closing is None:
            logger.info("[%s] The stream ends: %s", self.id, reason)
            self.closed = True
            self._cancel_end()
            self._news.close()
            self.quantizer.close()
            self._closing = asyncio.create_task(self._close(), name=f"close-stream-{self.id}")
        return self._closing

    async def _close(self) -> None:
        try:
            for recorders in (True, False):  # the ends of connections may take their time
                sinks = [sink for sink in self._sinks if (sink.info["kind"] == "recorder") is recorders]
                await asyncio.gather(*(sink.close() for sink in sinks), return_exceptions=True)
            self.output.close()
            self.input.close()
            self.stop_sources()
            tasks = [task for task in (self._drain, self._running) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.encoders.close()
            self.output.clear()
        finally:
            for call in tuple(self._on_closed):
                call()

    def _end_unheld(self) -> None:
        """Nobody holds the stream any more; whoever still sees it is told."""
        if self.kept and self.viewers:
            self.linger()
        elif self._controls or self._sinks:
            self.stop(None)
            if self._running is not None:
                self._running.cancel()
        else:
            self._begin_to_close("nobody holds it")

    def _cancel_end(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    @property
    def info(self) -> dict[str, Any]:
        """What GET /api/v1/streams/{id} tells about it, without addresses."""
        take = next((s.info for s in self._sinks if s.info["kind"] == "recorder"), None)
        return {
            "id": self.id,
            "state": self.phase,
            "pipeline_id": self._pipelines.loaded.spec.id if self._pipelines.loaded else None,
            "kept": self.kept,
            "private": self.tokens is not None,
            "drivers": self.seat.drivers,
            "driver": self.seat.driver,
            "created_at": self.created_at,
            "source": self.source_info,
            "sinks": [{k: v for k, v in sink.info.items() if k != "owner"} for sink in self._sinks],
            "viewers": self.viewers,
            "people": [
                {"sessionId": control.id, "label": control.label, "role": self.seat.role_of(control)}
                for control in self._controls
            ],
            "recording": {"state": "recording" if take else "stopped", "take": take and take.get("take")},
        }

    def metrics(self) -> dict[str, Any]:
        """What GET /api/v1/session/metrics tells about it."""
        elapsed = max(1e-6, time.monotonic() - self.started)
        stats, output = self.worker.stats, self.output
        return {
            "frames_in": self.input.frames_in,
            "frames_out": output.frames_out,
            "frames_dropped": output.frames_dropped,
            "elapsed_seconds": round(elapsed, 3),
            "fps_in": round(self.input.frames_in / elapsed, 2),
            "fps_out": round(output.frames_out / elapsed, 2),
            "pipeline_fps": round(output.fps, 2),
            "queued_frames": len(output),
            "buffered_input_frames": self.input.buffered,
            "paused": output.paused,
            "chunks": stats.chunks,
            "failed_chunks": stats.failed_chunks,
            "last_chunk_ms": stats.last_chunk_ms,
            "timings_ms": stats.timings_ms,
            "change_to_picture_ms": stats.change_to_picture_ms,
        }


def _way_of(by: Control | None) -> str:
    """How a control reaches its stream, as a take's lines tell it."""
    if by is None:
        return "rest"
    return by.id if by.id in _WAYS else "datachannel"
