"""Which pipeline is loaded: the state machine of api.md 4.5."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gateway.pipelines.load_params import LoadRequest, lora_adapters
from gateway.serving.interface import Serving, ServingError, ServingSession
from gateway.waiting import end, to_the_end, within
from streaming.specs import PipelineSpec

logger = logging.getLogger(__name__)


class State(str, Enum):
    NOT_LOADED = "not_loaded"
    LOADING = "loading"
    LOADED = "loaded"
    ERROR = "error"


@dataclass(slots=True, eq=False)
class Loaded:
    """A pipeline that sessions can stream from, until `retired` is set."""

    spec: PipelineSpec
    params: dict[str, Any]  # effective load parameters
    retired: asyncio.Event = field(default_factory=asyncio.Event)
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    lora_scales: dict[str, float] = field(default_factory=dict)  # set while streaming, by path

    def __post_init__(self) -> None:
        self.idle.set()

    def lora_adapters(self) -> list[dict[str, Any]] | None:
        """`loaded_lora_adapters` of the status, with the scales that are in force now."""
        adapters = lora_adapters(self.spec, self.params)
        for adapter in adapters or ():
            if adapter["merge_mode"] == "runtime_peft":
                adapter["scale"] = self.lora_scales.get(adapter["path"], adapter["scale"])
        return adapters

    def serves(self, request: LoadRequest) -> bool:
        return self.spec.id == request.spec.id and self.params == request.params


class NothingLoaded(ServingError):
    """There is no pipeline and none is on its way. error: why, when that was a failure."""

    def __init__(self, error: str | None) -> None:
        super().__init__(error or "Pipeline not loaded. Please load pipeline first.")
        self.error = error


class Pipelines:
    """At most one loaded pipeline; the newest accepted load request wins."""

    def __init__(self, serving: Serving, load_timeout_s: float) -> None:
        self._serving = serving
        self._load_timeout_s = load_timeout_s
        self._loaded: Loaded | None = None
        self._error: str | None = None
        self._stage: str | None = None
        self._wanted: LoadRequest | None = None  # accepted, not yet begun
        self._running: LoadRequest | None = None  # being loaded now, or being undone
        self._given_up = False  # it is being undone
        self._runner: asyncio.Task[None] | None = None
        self._load_task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()  # one owner of the serving side's model state at a time
        self._lost: LoadRequest | None = None  # what was loaded, as long as nothing else is wanted
        self._changed = asyncio.Condition()
        self.load_seconds: float | None = None  # of the last load that came to its end
        self._notices: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def serving(self) -> Serving:
        return self._serving

    @property
    def state(self) -> State:
        if self._wanted or self._running:
            return State.LOADING
        if self._loaded:
            return State.LOADED
        return State.ERROR if self._error else State.NOT_LOADED

    @property
    def loaded(self) -> Loaded | None:
        """The pipeline that a new session would use; None while another one is on its way."""
        return self._loaded if self.state is State.LOADED else None

    @property
    def coming(self) -> LoadRequest | None:
        """What will be loaded next."""
        return self._wanted or self._running

    @property
    def held(self) -> "LoadRequest | Loaded | None":
        """What the server will have next, else what it has."""
        return self.coming or self._loaded

    def held_id(self) -> str | None:
        held = self.held
        return None if held is None else held.spec.id

    def params_in_use(self) -> list[dict[str, Any]]:
        """Load parameters of what is loaded, being loaded or accepted."""
        requests = [self._wanted, self._running, self._loaded]
        return [request.params for request in requests if request is not None]

    def status(self) -> dict[str, Any]:
        """Body of GET /api/v1/pipeline/status."""
        loaded = self.loaded
        target = self.coming
        return {
            "status": self.state.value,
            "pipeline_id": loaded.spec.id if loaded else None,
            "load_params": loaded.params if loaded else None,
            "loaded_lora_adapters": loaded.lora_adapters() if loaded else None,
            # Also of a load that failed before it touched what is loaded.
            "error": None if target else self._error,
            "loading_stage": (self._stage or "Waiting for the serving side...") if target else None,
            "produces_video": True,
            "produces_audio": False,
            "pipeline_ids": [loaded.spec.id] if loaded else [],
            "loading_pipeline_id": target.spec.id if target else None,
            "load_plan": self._serving.load_plan if loaded else None,
        }

    def note_lora_scales(self, scales: Iterable[Mapping[str, Any]]) -> None:
        """A stream changed scales of adapters, `{path, scale}`; the status shows the newest."""
        if self._loaded is not None:
            self._loaded.lora_scales.update({entry["path"]: entry["scale"] for entry in scales})

    def reject(self, text: str) -> None:
        """Remember a refused load, so that a client that only polls the status learns of it (4.1 rule 5)."""
        if self.state in (State.NOT_LOADED, State.ERROR):
            self._error = text
            self._notify_soon()

    def state_of(self, request: LoadRequest) -> State | None:
        """LOADING or LOADED if this is the newest wish; None: it is a new one."""
        newest = self._wanted or (None if self._given_up else self._running)
        if newest is not None:
            equal = (newest.spec.id, newest.params) == (request.spec.id, request.params)
            return State.LOADING if equal else None
        if self._loaded and self._loaded.serves(request) and not self._running:
            return State.LOADED
        return None

    def request_load(self, request: LoadRequest) -> State:
        """Accept a load; the state has changed when this returns. Equal requests are no-ops."""
        if self._closed:  # a request that came while the server stops
            return self.state
        state = self.state_of(request)
        if state is not None:
            return state
        self._wanted = request
        self._lost = None
        self._error = None
        self._stage = None
        self._give_up_loading()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run(), name="pipeline-loader")
        return State.LOADING

    async def unload(self) -> None:
        """Unload what is loaded, cancel what is loading; idempotent. Streams end."""
        self._wanted = self._lost = None
        self._give_up_loading()
        async with self._lock:
            self._error = None
            await self._retire()
        await self._notify()

    def lost(self, text: str) -> None:
        """The serving side died under the loaded pipeline."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        logger.error("The loaded pipeline %s is gone: %s", loaded.spec.id, text)
        self._lost = LoadRequest(loaded.spec, loaded.params, [], frozenset())
        self._error = text
        loaded.retired.set()
        self._notify_soon()

    def load_lost(self) -> bool:
        """Load again what was lost. False: it was not lost, or is not what was wanted last."""
        lost = self._lost
        if lost is None:
            return False
        self.request_load(lost)
        self._lost = lost  # until it is loaded, or something else
        return True

    async def adapt(self, change: Callable[[Loaded], list[dict[str, Any]]]) -> Loaded:
        """Change the LoRA files beside the weights of what is loaded; streams go on.

        change: from what is loaded to its new load parameter `loras`; what it raises is passed on. Raises
        NothingLoaded, also while something else is on its way, and ServingError; nothing has changed then.
        """
        if self.loaded is None:
            raise NothingLoaded(self._error)
        async with self._lock:
            loaded = self.loaded
            if loaded is None:
                raise NothingLoaded(self._error)
            loras = change(loaded)
            await to_the_end(self._serving.adapt(loras))
            loaded.params["loras"] = loras or None
            gone = loaded.lora_scales.keys() - {entry["path"] for entry in loras}
            for path in gone:
                del loaded.lora_scales[path]
            return loaded

    async def wait_for(self, *states: State) -> State:
        """Wait until the state is one of `states`; returns which."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state in states)
            return self.state

    async def wait_loaded(self) -> Loaded:
        """The loaded pipeline; waits while one is loading.

        Raises NothingLoaded when nothing is loaded and nothing is on its way.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self.state is not State.LOADING)
        if self._loaded is None:
            raise NothingLoaded(self._error)
        return self._loaded

    @contextlib.asynccontextmanager
    async def open_session(self, loaded: Loaded) -> AsyncIterator[ServingSession]:
        """A serving session that the pipeline's retirement waits for."""
        session = self._serving.open_session()
        loaded.users += 1
        loaded.idle.clear()
        try:
            yield session
        finally:
            try:
                await session.close()
            finally:
                loaded.users -= 1
                if loaded.users == 0:
                    loaded.idle.set()

    async def close(self) -> None:
        """Unload and stop the loader task, soon; nothing is loaded any more after that."""
        self._closed = True
        self._serving.hurry()
        await self.unload()
        if self._runner is not None:
            await end(self._runner)

    def _give_up_loading(self) -> None:
        if self._load_task is not None:
            self._given_up = True
            self._load_task.cancel()

    async def _run(self) -> None:
        while self._wanted is not None:
            async with self._lock:
                request, self._wanted = self._wanted, None
                if request is None:  # unloaded meanwhile
                    break
                self._running, self._given_up = request, False
                self._load_task = asyncio.create_task(self._load(request), name=f"load-{request.spec.id}")
                try:
                    await to_the_end(asyncio.wait({self._load_task}))
                    self._judge(request, self._load_task)
                finally:
                    self._running = None
                    self._load_task = None
                    self._stage = None
            await self._notify()

    def _judge(self, request: LoadRequest, load: "asyncio.Task[None]") -> None:
        if load.cancelled():
            logger.info("Loading %s was cancelled", request.spec.id)
        elif error := load.exception():
            self._fail(request, error)

    async def _load(self, request: LoadRequest) -> None:
        if self._loaded and self._loaded.serves(request):  # an older wish was cancelled in favour of this one
            return
        # Not within the limit of a load: TensorRT may build for an hour, and what is loaded runs meanwhile.
        await self._serving.prepare(request.spec, request.params, self._set_stage)
        await self._retire()
        logger.info("Loading %s with %s", request.spec.id, request.params)
        try:
            await within(self._serve(request), self._load_timeout_s)
        except asyncio.TimeoutError as error:
            raise ServingError(f"not loaded within {self._load_timeout_s:.0f} s") from error
        except asyncio.CancelledError:
            await self._retire()  # it may have been done at just that moment
            raise
        logger.info("Loaded %s", request.spec.id)

    async def _serve(self, request: LoadRequest) -> None:
        started = time.monotonic()
        await self._serving.load(request.spec, request.params, self._set_stage)
        self.load_seconds = time.monotonic() - started
        self._loaded = Loaded(request.spec, request.params)  # in the same step: what is lost now is this one
        self._lost = self._error = None

    def _set_stage(self, text: str) -> None:
        logger.info("%s", text)
        self._stage = text

    def _fail(self, request: LoadRequest, error: BaseException) -> None:
        if isinstance(error, ServingError):
            logger.error("Failed to load %s: %s", request.spec.id, error)
            text = str(error)
        else:
            logger.error("Failed to load %s", request.spec.id, exc_info=error)
            text = "internal error, see the server's log"
        if self._wanted is None:
            self._error = f"Failed to load pipeline {request.spec.id}: {text}"

    async def _retire(self) -> None:
        """Take the loaded pipeline out of service; cancellations wait until that is done.

        Whoever loads next must not meet a half unloaded pipeline.
        """
        await to_the_end(self._take_out_of_service())

    async def _take_out_of_service(self) -> None:
        """Sessions let go of the loaded pipeline, then it is unloaded."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        loaded.retired.set()
        await self._notify()
        try:
            await within(loaded.idle.wait(), 15)
        except asyncio.TimeoutError:
            logger.warning("%d session(s) did not let go of %s in time", loaded.users, loaded.spec.id)
        await self._serving.unload()
        logger.info("Unloaded %s", loaded.spec.id)

    def _notify_soon(self) -> None:
        notice = asyncio.ensure_future(self._notify())
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
