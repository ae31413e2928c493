"""All streams of this gateway: the only place where one is made, found, counted and turned out."""

import asyncio
import contextlib
import logging
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gateway.config import Limits
from gateway.errors import ApiError, Problem, ValidationFailed
from gateway.http.validation import located, quoted
from gateway.pipelines.state import Loaded, Pipelines
from gateway.stream.access import StreamTokens
from gateway.stream.encoding.encoders import Encoding
from gateway.stream.encoding.rate import RateLimits
from gateway.stream.parameters.state import ParameterContext, ParameterState
from gateway.stream.parameters.tempo import Tempo
from gateway.stream.seat import Drivers
from gateway.stream.stream import Stream
from gateway.stream.worker import StreamObserver
from gateway.threads import in_parameter_thread
from streaming.specs import PipelineSpec

logger = logging.getLogger(__name__)

ALL: Final = "all"  # stands for every stream
MAIN: Final = "main"  # the stream of addresses that name none; before there is one, the newest
HEADLESS: Final = "headless"  # the newest stream without a WebRTC peer

_REASONS: Final = ("full", "draining", "not_loaded", "invalid")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_FLUSH_S: Final = 0.5  # between `stream_stopped` and the end, when the server stops


@dataclass(slots=True)
class Totals:
    """Counters over all streams since the start."""

    streams: int = 0
    frames_in: int = 0
    frames_out: int = 0
    frames_dropped: int = 0
    errors: int = 0

    def add(self, stream: Stream) -> None:
        self.frames_in += stream.input.frames_in
        self.frames_out += stream.output.frames_out
        self.frames_dropped += stream.output.frames_dropped
        self.errors += stream.failed


class Streams:
    """The table of streams."""

    def __init__(
        self,
        pipelines: Pipelines,
        observer: StreamObserver,
        assets_directory: Path,
        limits: Limits,
        encoding: Encoding | None = None,
    ) -> None:
        self._pipelines = pipelines
        self._observer = observer
        self._assets_directory = assets_directory
        self._limits = limits
        self._encoding = encoding
        self._streams: dict[str, Stream] = {}
        self._totals = Totals()  # without the streams that are still there
        self.tempo = Tempo()
        self.has_aliases = True  # whether whoever knows no id reaches the newest stream
        self.pictures_in: Counter[str] = Counter()  # of all streams since the start, by kind of source
        self.sources_lost: Counter[str] = Counter()
        self.on_wish: Callable[[Stream, Mapping[str, Any]], list[Problem]] = lambda _, __: []
        self.draining = False  # no new streams
        self.hands_over = False  # whoever is cut off at the end is told to come back
        self.new_id: Callable[[], str] = lambda: str(uuid.uuid4())  # of a stream or session without a name
        self.on_created: list[Callable[[Stream], None]] = []
        self.refused = dict.fromkeys(_REASONS, 0)  # offers, by the reason

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._streams.values()))

    def __len__(self) -> int:
        return len(self._streams)

    def get(self, stream_id: str) -> Stream | None:
        """The stream of this very id, which aliases and session ids are not."""
        stream = self._streams.get(stream_id)
        return None if stream is None or stream.closed else stream

    @property
    def limit(self) -> int:
        """How many streams there may be of what is loaded."""
        loaded = self._pipelines.loaded
        return 0 if loaded is None else self._limit(loaded.spec)

    @contextlib.contextmanager
    def counting_refusals(self) -> Iterator[None]:
        """For the answer to an offer: counts it when it is refused."""
        try:
            yield
        except ApiError as error:
            self.refused[self._reason_of(error)] += 1
            raise
        except ValidationFailed:
            self.refused["invalid"] += 1
            raise

    def _reason_of(self, refusal: ApiError) -> str:
        if self.draining and refusal.status == 503:
            return "draining"
        if self._pipelines.loaded is None:
            return "not_loaded"
        return "full" if refusal.status == 503 else "invalid"

    def find(self, stream_id: str) -> Stream:
        """The stream of this id, of one of its peers' session ids, or of an alias. Raises ApiError 404."""
        stream = self.lookup(stream_id)
        if stream is None:
            raise ApiError(404, f"Stream {quoted(stream_id, 64)} not found")
        return stream

    def lookup(self, stream_id: str) -> Stream | None:
        """`find`, but None for a stream that is not there."""
        stream = self._streams.get(stream_id) or self._by_alias(stream_id) or self._by_control(stream_id)
        return None if stream is None or stream.closed else stream

    def newest(self) -> Stream | None:
        """The newest stream that is not private."""
        public = (stream for stream in self if stream.tokens is None)
        return max(public, key=lambda stream: stream.started, default=None)

    def require_open(self) -> None:
        """Raises ApiError 503 when the server stops, and takes nobody more."""
        if self.draining:
            raise ApiError(503, "The server is shutting down", headers={"Retry-After": "30"})

    def require_service(self) -> Loaded:
        """What a new stream would be made for. Raises ApiError 503 (the server stops), 400 (no pipeline)."""
        self.require_open()
        loaded = self._pipelines.loaded
        if loaded is None:
            raise ApiError(400, "Pipeline not loaded. Please load pipeline first.")
        return loaded

    def require_place(self, stream: Stream) -> None:
        """Raises ApiError 503 when nobody more may watch `stream`."""
        self.require_open()
        if stream.viewers >= self._limits.viewers:
            text = f"Maximum number of viewers ({self._limits.viewers}) of stream {stream.id} reached"
        elif sum(each.viewers for each in self) >= self._limits.viewers_total:
            text = f"Maximum number of viewers ({self._limits.viewers_total}) of this server reached"
        elif self._limits.egress is not None and self._egress(stream) > self._limits.egress:
            text = "The server's network is full: WANSTREAM_MAX_EGRESS would be passed"
        else:
            return
        raise ApiError(503, text, headers={"Retry-After": "5"})

    def _egress(self, more: Stream) -> float:
        """Bit/s that all streams send when `more` has one viewer more."""
        return sum((stream.video_viewers + (stream is more)) * self._bitrate(stream) for stream in self)

    def _bitrate(self, stream: Stream) -> int:
        image = stream.output.last
        height, width = (480, 832) if image is None else image.shape[:2]
        encoding = self._encoding or Encoding()
        return RateLimits(encoding.bitrate).default(width, height)

    async def create(
        self,
        stream_id: str | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        kept: bool = False,
        linger_s: float = 0.0,
        drivers: Drivers = "one",
        private: bool = False,
    ) -> Stream:
        """A new stream, for the caller to hold.

        stream_id: a name, or None: an id of its own. kept: it holds itself, or, with `linger_s`, lives on
        while somebody watches. linger_s: how long it outlives its last holder, and waits for its first.
        private: it has tokens of its own. Raises ApiError 400 (no pipeline), 409 (the name is in use),
        422 (not a name), 503 (full, or the server stops), ValidationFailed (parameters).
        """
        loaded = self.require_service()
        chosen = self.new_id() if stream_id is None else self._checked_name(stream_id)
        context = ParameterContext(loaded.spec, loaded.params, self._assets_directory)
        state = await in_parameter_thread(ParameterState.open, context, parameters)
        await self._make_room(loaded.spec)
        if chosen in self._streams:  # made while this one waited
            raise _in_use(chosen)
        stays = kept or linger_s > 0
        stream = Stream(
            chosen, self._pipelines, state, self._observer, linger_s, drivers, self._encoding, stays
        )
        stream.kept = kept
        stream.tokens = StreamTokens() if private else None
        self._streams[chosen] = stream
        self._totals.streams += 1
        stream.on_closed(lambda: self._closed(stream))
        stream.on_wish = self.on_wish
        stream.pictures_in, stream.sources_lost = self.pictures_in, self.sources_lost
        stream.quantizer.tempo = self.tempo
        state.remarks += stream.fulfil()
        for call in self.on_created:
            call(stream)
        if kept and not linger_s:
            stream.hold(self)
        elif linger_s > 0:
            stream.linger()
        logger.info("[%s] Stream made for %s", stream.id, loaded.spec.id)
        return stream

    async def end(self, stream: Stream, reason: str) -> None:
        """End a stream, after whoever sees it could read that."""
        if stream.controls and _stop(stream):
            await asyncio.sleep(_FLUSH_S)
        await stream.close(reason)

    async def close(self) -> None:
        """Tell everybody that the streams are over and end them all, in parallel."""
        self.draining = True
        streams = list(self)
        told = [_stop(stream, reconnect=self.hands_over) for stream in streams]
        if any(told):
            await asyncio.sleep(_FLUSH_S)
        ends = (stream.close("the server stops") for stream in streams)
        await asyncio.gather(*ends, return_exceptions=True)

    async def update_all(self, values: dict[str, Any]) -> dict[str, Any]:
        """Apply a partial update to every stream that is not private; see `update`."""
        return await self.update([stream for stream in self if stream.tokens is None], values)

    async def update(self, streams: Sequence[Stream], values: dict[str, Any]) -> dict[str, Any]:
        """Apply a partial update that came over REST; body of the answer.

        Raises ValidationFailed when no key of it could be applied.
        """
        reports = await asyncio.gather(*(stream.update(values) for stream in streams))
        errors = next((report for report in reports if report), [])  # the same pipeline judges alike
        refused = {str(problem["loc"][0]) for problem in errors if problem["loc"]}
        applied = {key: value for key, value in values.items() if key not in refused}
        if errors and not applied:
            raise ValidationFailed(located(errors, "body"))
        return {"status": "ok", "applied_parameters": applied, "errors": errors}

    def totals(self) -> Totals:
        """Counters over all streams, those that are still there included."""
        totals = replace(self._totals)
        for stream in self:
            totals.add(stream)
        return totals

    def _by_alias(self, name: str) -> Stream | None:
        if not self.has_aliases:
            return None
        if name == MAIN:
            return self.newest()
        if name == HEADLESS:
            headless = [
                stream for stream in self if not any(s.info["kind"] == "webrtc" for s in stream.sinks)
            ]
            return max(headless, key=lambda stream: stream.started, default=None)
        return None

    def _by_control(self, control_id: str) -> Stream | None:
        found = (s for s in self if any(control.id == control_id for control in s.controls))
        return next(found, None)

    def _checked_name(self, name: str) -> str:
        if not _NAME.fullmatch(name) or name in (ALL, HEADLESS):
            raise ApiError(
                422,
                f"'{quoted(name, 64)}' cannot name a stream: use up to 64 of a-z, 0-9, - and _, beginning "
                f"with a letter or digit; '{ALL}' and '{HEADLESS}' are taken",
            )
        if name in self._streams:
            raise _in_use(name)
        return name

    def _limit(self, spec: PipelineSpec) -> int:
        here = self._pipelines.serving.availability(spec).max_sessions
        return self._limits.streams or spec.max_sessions or here or 1

    async def _make_room(self, spec: PipelineSpec) -> None:
        limit = self._limit(spec)
        if len(self._streams) < limit:
            return
        for stream in self:  # the oldest first: younger ones may still connect
            if stream.may_be_evicted and len(self._streams) >= limit:
                await stream.close("nobody is connected to it while others wait")
        if len(self._streams) >= limit:
            text = f"Maximum number of concurrent sessions ({limit}) reached"
            raise ApiError(503, text, headers={"Retry-After": "5"})

    def _closed(self, stream: Stream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self._totals.add(stream)


def _stop(stream: Stream, *, reconnect: bool = False) -> bool:
    """Tell everybody that the stream is over; False: they know already."""
    known = stream.stopped
    stream.stop(None, reconnect=reconnect)
    return not known


def _in_use(name: str) -> ApiError:
    return ApiError(409, f"There is a stream '{name}' already: choose another name, or DELETE it first")
