"""The loop of one stream: parameters and input frames in, one chunk after another out."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.errors import Problem
from gateway.files.reference_images import names_images, read_images
from gateway.pipelines.state import Loaded, NothingLoaded, Pipelines, State
from gateway.serving.interface import (
    Chunk,
    ChunkFailed,
    Images,
    ServedPlan,
    ServingLost,
    ServingSession,
)
from gateway.stream.parameters.state import ChunkParameters, ParameterState
from gateway.stream.parts import Listener, parameter_error
from gateway.stream.pictures.hub import Hub
from gateway.stream.pictures.preprocessors import PREPROCESSORS
from gateway.stream.pictures.video_input import VideoInput, stack
from gateway.threads import in_media_thread
from gateway.waiting import within
from streaming.specs import PipelineSpec
from streaming.triton.protocol import Meta

logger = logging.getLogger(__name__)

_MAX_FAILURES = 5
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 2.0
_NO_INPUT_REPORT_S = 5.0


class StreamObserver(Protocol):
    """Who wants to know of every chunk."""

    def chunk_done(self, pipeline: str, seconds: float) -> None: ...

    def chunk_failed(self, pipeline: str) -> None: ...

    def input_shown(self, seconds: float) -> None:
        """A chunk is shown so long after its newest input picture had come."""

    def change_shown(self, pipeline: str, seconds: float) -> None:
        """The first picture with changed parameters is shown so long after these were changed."""


Notify = Callable[[dict[str, Any]], None]


class StreamStoppedError(Exception):
    """The stream is over. error_message: what to tell the user, None when nothing went wrong."""

    def __init__(self, error_message: str | None) -> None:
        super().__init__(error_message or "stopped")
        self.error_message = error_message


@dataclass(slots=True)
class WorkerStats:
    """Counters of one stream since its start."""

    chunks: int = 0
    failed_chunks: int = 0
    last_chunk_ms: float | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    change_ms: deque[float] = field(default_factory=lambda: deque(maxlen=20))  # from changes to pictures

    @property
    def change_to_picture_ms(self) -> dict[str, float] | None:
        """Median and spread (of nine in ten) of the last delays, and their number; None: no change yet."""
        if not self.change_ms:
            return None
        delays = sorted(self.change_ms)
        low, middle, high = (delays[round(share * (len(delays) - 1))] for share in (0.05, 0.5, 0.95))
        return {"median": round(middle, 1), "spread": round(high - low, 1), "count": len(delays)}


class StreamWorker:
    """Generates one stream's video until `StreamStoppedError` is raised or the task is cancelled.

    has_input: whether the stream has a source at all. stays: it waits while no pipeline is loaded.
    """

    def __init__(
        self,
        stream_id: str,
        pipelines: Pipelines,
        state: ParameterState,
        video_input: VideoInput,
        output: Hub,
        has_input: Callable[[], bool],
        notify: Notify,
        observer: StreamObserver,
        stays: bool = False,
    ) -> None:
        self._id = stream_id
        self._pipelines = pipelines
        self._state = state
        self._input = video_input
        self._output = output
        self._has_input = has_input
        self._notify = notify
        self._observer = observer
        self._stays = stays
        self._pipeline_id = pipelines.loaded.spec.id if pipelines.loaded else ""
        self._told = self._pipeline_id  # what the peer believes to see; empty: another one is on its way
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._failures = 0
        self._give_up: Callable[[], None] | None = None  # ends the chunk in the making; None: it stays
        self._silent = False  # the peer was told that its pictures do not come
        self.control: Images | None = None  # the newest control pictures, uint8 [T, H, W, 3]
        self._changed_at: float | None = None  # when somebody changed what no chunk has taken yet
        self.listeners: list[Listener] = []
        self.stats = WorkerStats()

    @property
    def loaded(self) -> Loaded | None:
        """The pipeline that makes the chunks."""
        return self._pipelines.loaded

    @property
    def load_plan(self) -> ServedPlan | None:
        """How it is served; None: nothing is loaded, or a pipeline without engines."""
        return None if self.loaded is None else self._pipelines.serving.load_plan

    def note_change(self) -> None:
        """Somebody changes parameters: the time from here to the picture is measured."""
        if self._changed_at is None and self._output.wanted and not self._output.paused:
            self._changed_at = time.monotonic()

    def change_shown(self, seconds: float) -> None:
        """The first picture with changed parameters is shown."""
        self.stats.change_ms.append(1000 * seconds)
        self._observer.change_shown(self._pipeline_id, seconds)

    def begin_again(self) -> None:
        """The chunk in the making has old parameters: unless it is on its way to the peer, begin it again."""
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up()

    def set_paused(self, paused: bool) -> None:
        """Act on `paused` at once: the picture stands still, what was made before is not shown late."""
        self._output.paused = paused
        if paused:
            self._output.clear()
            self._resumed.clear()
        else:
            self._resumed.set()
        self.tell("pause" if paused else "resume")

    def tell(self, event: str, **details: Any) -> None:
        """Tell all listeners."""
        for listener in tuple(self.listeners):
            listener.happened(event, details)

    async def run(self) -> None:
        """Stream on whatever pipeline is loaded, across reloads."""
        while True:
            try:
                loaded = await self._pipelines.wait_loaded()
            except NothingLoaded as error:
                if not self._stays:
                    raise StreamStoppedError(error.error) from error
                await self._pipelines.wait_for(State.LOADED)
                continue
            self._state.rebase(loaded.spec, loaded.params)
            self._input.expect_for(loaded)
            self._failures = 0
            self._pipeline_id = loaded.spec.id
            self.tell("pipeline", pipeline_id=loaded.spec.id, load_params=dict(loaded.params))
            if loaded.spec.id != self._told:
                self._told = loaded.spec.id
                self._notify(pipeline_changed("loaded", loaded.spec, loaded.params, self._state.input_mode))
            self._output.expect_chunks_of(loaded.spec.video_frames_per_request)
            try:
                async with self._pipelines.open_session(loaded) as session:
                    await self._until_retired(loaded, session)
            except ServingLost as error:
                if not (self._stays and loaded.retired.is_set()):
                    raise StreamStoppedError(str(error)) from error

    async def _until_retired(self, loaded: Loaded, session: ServingSession) -> None:
        """Stream until the pipeline is replaced or unloaded; a chunk in the making is not waited for then."""
        stream = asyncio.ensure_future(self._stream(loaded, session))
        retired = asyncio.ensure_future(loaded.retired.wait())
        try:
            await asyncio.wait({stream, retired}, return_when=asyncio.FIRST_COMPLETED)
            if stream.done():
                await stream  # it only ends by an error
            logger.info("[%s] The pipeline is being replaced; waiting for the next one", self._id)
            self._tell_what_comes(loaded)
        finally:
            for task in (stream, retired):
                task.cancel()
            await asyncio.gather(stream, retired, return_exceptions=True)

    def _tell_what_comes(self, loaded: Loaded) -> None:
        """Tell the peer that the pipeline goes; one that comes again, in another size, is no news."""
        coming = self._pipelines.coming
        if coming is not None and coming.spec.id != loaded.spec.id:
            self._told = ""
            self._notify(pipeline_changed("loading", coming.spec, coming.params))
        elif self._pipelines.state is State.NOT_LOADED:
            self._notify(pipeline_changed("not_loaded"))

    async def _stream(self, loaded: Loaded, session: ServingSession) -> None:
        while True:
            await self._rest_while_paused()
            await self._output.wait_wanted()
            await self._output.wait_room()
            video = None
            if self._state.input_mode == "video":
                video = await self._take_input(loaded)
                if video is None:
                    continue
            try:
                # Without a loop there is nothing to win: the chunk is there before it could be given up.
                finished = await self._chunk(session, video, may_give_up=loaded.spec.loop is not None)
                if not finished and self._wants(video):
                    # To its end this time: whoever sends changes all the time shall see pictures.
                    await self._chunk(session, video, may_give_up=False)
            except ChunkFailed as error:
                await self._handle_failure(error)

    def _wants(self, video: Images | None) -> bool:
        """Whether a chunk of these input pictures is still what the session asks for."""
        return not self._output.paused and (self._state.input_mode == "video") == (video is not None)

    async def _rest_while_paused(self) -> None:
        if self._resumed.is_set():
            return
        logger.info("[%s] Paused", self._id)
        await self._resumed.wait()
        logger.info("[%s] Resumed", self._id)

    async def _take_input(self, loaded: Loaded) -> Images | None:
        """One request's worth of input pictures, or None when the mode or the pause changed while waiting."""
        wanted = loaded.spec.video_frames_per_request
        while True:
            frames = self._input.take(wanted)
            if frames is not None:
                self._input_is_back()
                return frames[0][None] if wanted == 1 else await in_media_thread(stack, frames)
            try:
                await within(self._input.wait(), _NO_INPUT_REPORT_S)
            except asyncio.TimeoutError:
                self._input_is_silent()
            if self._state.input_mode != "video" or self._output.paused:
                self._silent = False  # of no consequence now
                return None

    def _input_is_silent(self) -> None:
        """Tell once per silence that chunks wait for pictures."""
        if self._silent:
            return
        self._silent = True
        # A transceiver without a track looks like a track until nothing comes out of it.
        text = (
            f"No picture has arrived for {_NO_INPUT_REPORT_S:.0f} s: the camera or its connection has "
            "stopped. The stream goes on with the next ones."
            if self._has_input() and self._input.frames_in
            else "Video mode needs pictures and none has arrived: add a video track to the offer."
        )
        self._report_problem(["input_mode"], "no_input", text)

    def _input_is_back(self) -> None:
        if self._silent:
            self._silent = False
            self._notify({"type": "input_resumed"})

    async def _chunk(self, session: ServingSession, video: Images | None, *, may_give_up: bool) -> bool:
        """Make one chunk. False: it was given up, since its parameters changed before its first picture."""
        chunk = self._take_parameters()
        changed_at, self._changed_at = self._changed_at, None
        self._log_changes(chunk)
        if chunk.parameters["init_cache"]:
            self._output.clear()
        parameters = await self._with_pixels(chunk.parameters)
        video = await self._controlled(session, chunk.parameters, video)
        started = time.monotonic()
        self._give_up = session.give_up if may_give_up else None
        try:
            newest_input = None if video is None else self._input.taken_at
            pictures = session.generate(parameters, video)
            count, meta = await self._show(pictures, newest_input, changed_at if chunk.changed else None)
        finally:
            self._give_up = None
        if meta.get("given_up"):
            logger.info("[%s] Chunk %d begins again", self._id, self.stats.chunks)
            self._changed_at = changed_at or self._changed_at
            return False
        seconds = time.monotonic() - started
        self._output.chunk_done(seconds, count)
        self._state.chunk_succeeded(meta)
        self._pipelines.note_lora_scales(chunk.parameters.get("lora_scales", ()))
        self._failures = 0
        self._observer.chunk_done(self._pipeline_id, seconds)
        self.stats.chunks += 1
        self.stats.last_chunk_ms = round(seconds * 1000, 2)
        self.stats.timings_ms = dict(meta.get("timings_ms", {}))
        for warning in meta.get("warnings", []):
            logger.warning("[%s] %s", self._id, warning)
        return True

    def _take_parameters(self) -> ChunkParameters:
        number = self.stats.chunks
        for listener in tuple(self.listeners):
            listener.before_chunk(number)
        chunk = self._state.take_chunk()
        for listener in tuple(self.listeners):
            listener.chunk_taken(number, chunk)
        return chunk

    async def _with_pixels(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a chunk with the images that they name; the chunk does without the unreadable."""
        if not names_images(parameters):
            return parameters
        read = await in_media_thread(read_images, parameters, self._state.assets_directory)
        if read.problems:
            self._notify(parameter_error(read.problems))
        return read.parameters

    async def _controlled(
        self, session: ServingSession, parameters: Mapping[str, Any], video: Images | None
    ) -> Images | None:
        """The input pictures, or what VACE is to be shown in their place."""
        is_control = parameters.get("vace_enabled") and parameters.get("vace_use_input_video")
        if video is None or not is_control:
            self.control = None
            return video
        name = parameters["vace_preprocessor"]
        if name in PREPROCESSORS:
            video = await in_media_thread(PREPROCESSORS[name], video)
        elif name != "none":
            video = await session.preprocess(name, video)
        self.control = video
        return video

    async def _show(
        self, chunk: AsyncGenerator[Chunk, None], newest_input: float | None, changed_at: float | None
    ) -> tuple[int, Meta]:
        """Queue a chunk's pictures as they come; returns their number and what was told about the chunk.

        newest_input: when the newest of its input pictures came, monotonic seconds; None: it has none.
        changed_at: when its parameters were changed; None: they are as before.
        """
        count, meta = 0, Meta()
        async with contextlib.aclosing(chunk) as parts:
            async for part in parts:
                meta.update(part.meta)
                count += len(part.frames)
                if len(part.frames):
                    self._give_up = None  # on its way
                    if not self._output.paused:
                        self._output.put(part.frames, newest_input, changed_at)
                    newest_input = changed_at = None  # the first picture counts
        return count, meta

    def _log_changes(self, chunk: ChunkParameters) -> None:
        """Prompts are private: what was changed to which value is for debugging only."""
        if chunk.changed:
            logger.info("[%s] Chunk %d changes %s", self._id, self.stats.chunks, ", ".join(chunk.changed))
            values = {name: chunk.parameters[name] for name in chunk.changed}
            logger.debug("[%s] Chunk %d is given %s", self._id, self.stats.chunks, values)

    async def _handle_failure(self, error: ChunkFailed) -> None:
        self._observer.chunk_failed(self._pipeline_id)
        self.stats.failed_chunks += 1
        self._failures += 1
        logger.warning("[%s] Chunk failed (%d in a row): %s", self._id, self._failures, error)
        reverted = self._state.chunk_failed()
        self.tell("chunk_failed", error=str(error))
        if error.fatal or self._failures >= _MAX_FAILURES:
            raise StreamStoppedError(str(error)) from error
        if reverted or self._failures == 1:
            self._report_problem(list(reverted), "chunk_failed", str(error))
        await asyncio.sleep(min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (self._failures - 1)))

    def _report_problem(self, loc: list[str], kind: str, text: str) -> None:
        self._notify(parameter_error([Problem(loc=list(loc), msg=text, type=kind)]))


def pipeline_changed(
    status: str,
    spec: PipelineSpec | None = None,
    params: Mapping[str, Any] | None = None,
    input_mode: str | None = None,
) -> dict[str, Any]:
    """A message: somebody loads another pipeline under the streams, has loaded it, or has unloaded theirs.

    input_mode: what the stream does with it. width, height: of its pictures; None: as the input's.
    """
    sized = params if params is not None and spec is not None and spec.loop is not None else {}
    return {
        "type": "pipeline_changed",
        "status": status,
        "pipeline_id": spec.id if spec else None,
        "modes": list(spec.modes) if spec else [],
        "input_mode": input_mode,
        "width": sized.get("width"),
        "height": sized.get("height"),
    }
