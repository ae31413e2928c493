"""Triton as the serving side: which models a pipeline needs, one sequence per session, recovery.

Only this package imports tritonclient.
"""

import asyncio
import contextlib
import json
import logging
import re
import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from gateway.embedded.server import EmbeddedTriton
from gateway.serving.adapters import TAKES_NONE, AdaptedLoad, Adapters, live_adapters
from gateway.serving.checkpoints import Checkpoints
from gateway.serving.engine_checks import why_refused
from gateway.serving.engine_sets import EngineSets, FoundSet
from gateway.serving.interface import (
    Availability,
    ChunkFailed,
    ServedPlan,
    ServingError,
    ServingLost,
    StageCallback,
)
from gateway.serving.load_plans import EngineLoad, LoadPlanner
from gateway.serving.memory import Memory
from gateway.serving.merged_sets import SetMerger
from gateway.serving.room import Room
from gateway.triton.models import (
    LOADING,
    READY,
    NoAnswerError,
    answer_of,
    answered_requests,
    check_version,
    model_states,
    unload_leftovers,
    unload_model,
    why_not_served,
)
from gateway.triton.server import TritonServer
from gateway.triton.session import TritonSession, dead_models, user_text
from gateway.triton.shared_frames import BESIDE, SharedFrames, remove_left_frames
from gateway.waiting import end, to_the_end, within
from streaming.engines.engine_config import engine_config
from streaming.engines.load_plan import BackendChoice, LoadPlan, PlannedAdapter
from streaming.engines.manifest import CONFIG, EngineManifest
from streaming.memory.machine import gpu_memory_bytes
from streaming.specs import SPECS, PipelineSpec
from streaming.triton.model_config import MODEL_SOURCE, pipeline_config

logger = logging.getLogger(__name__)

_UNLOAD_S = 15.0  # 1.2 s is typical, a multiple of that on a busy machine
_CLOSE_S = 2.0
_METRICS_S = 2.0
_OTHER_GATEWAY_S = 5.0  # an idle one sends a probe every two seconds


class TritonServing:
    """Serves through a Triton server: an embedded one that is restarted when it dies, or an external one."""

    def __init__(
        self,
        repository: Path,
        *,
        external_url: str | None = None,
        metrics_url: str | None = None,
        embedded: EmbeddedTriton | None = None,
        engines: EngineSets | None = None,
        checkpoints: Checkpoints | None = None,
        adapters: Adapters | None = None,
        merger: SetMerger | None = None,
        memory_limit_bytes: int | None = None,
        shared_memory: bool = False,
        preprocessors: Path | None = None,
    ) -> None:
        """repository: where the pipelines' models are. Give one of external_url and embedded.

        external_url: host:port of gRPC. metrics_url: http://host:port/metrics, the source of GPU memory.
        engines: what `wanstream-export` wrote, for the pipelines with a model; checkpoints: what streams
        without.
        memory_limit_bytes: what these may take with all sessions; None: what is free.
        preprocessors: directory of models, where weights of preprocessors are.
        shared_memory: an external server sees the same /dev/shm; an embedded one always does.
        """
        if (external_url is None) == (embedded is None):
            raise ValueError("give either external_url or embedded")
        self._repository = repository
        self._beside = f"{BESIDE}{secrets.token_hex(4)}_" if shared_memory else ""  # in /dev/shm
        self._metrics_url = metrics_url
        self._preprocessors = preprocessors
        self._engines = engines
        self._planner = None if engines is None else LoadPlanner(engines, checkpoints, adapters, merger)
        self._server = TritonServer(
            external_url, embedded, on_lost=self._lost, prepare=self._prepare, look=self._look
        )
        self._memory = Memory(
            self.gpu_memory_bytes, on_cpu=embedded is not None, limit_bytes=memory_limit_bytes
        )
        self._served: ServedPlan | None = None  # of the newest load, None without engines
        self._adapted: AdaptedLoad | None = None  # of what is loaded, where LoRA files may be put beside it
        self._loaded: list[str] = []  # models that are or may be on the server, in the order of loading
        self._model: str | None = None  # the pipeline's, while it can be used
        self._watched: list[str] = []  # models that have to answer as long as the pipeline is loaded
        self._used: set[str] = set()  # pipelines that were loaded from here
        self._dead: set[str] = set()  # models whose process died
        self._dead_processes: set[int] = set()  # of an embedded server, at the last look
        self._sessions_open: weakref.WeakSet[TritonSession] = weakref.WeakSet()
        self._probe: asyncio.Task[None] | None = None
        self._on_lost: Callable[[str], None] = lambda text: None
        self._hurry = asyncio.Event()
        self._closed = False

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def problem(self) -> str | None:
        return self._server.problem

    async def start(self, on_lost: Callable[[str], None]) -> None:
        self._on_lost = on_lost
        self._server.start()

    async def is_ready(self) -> bool:
        return await self._server.is_ready()

    async def verify(self) -> None:
        client = self._server.client
        if client is not None:
            try:
                await self._look(client)
            except NoAnswerError as error:
                logger.warning("%s; it is watched", error)
            except (ServingError, InferenceServerException) as error:
                self._server.lose(f"Triton at {self.url} is gone: {error}")

    def availability(self, spec: PipelineSpec, backend: BackendChoice = "auto") -> Availability:
        if (self._repository / spec.id / MODEL_SOURCE).is_file():
            if spec.loop is None:
                return Availability(True)
            if self._planner is not None:
                found = self._planner.availability(spec, backend)
                plan = self.load_plan if self._model == spec.id else None
                return found if plan is None else replace(found, max_sessions=plan.sessions)
        return Availability(
            False,
            f"Pipeline '{spec.id}' is not part of this version of wanstream: there is no model "
            f"'{spec.id}' in the model repository.",
        )

    @property
    def load_plan(self) -> ServedPlan | None:
        return self._served if self._model is not None else None

    @property
    def on_gpu(self) -> bool:
        checkpoints = None if self._planner is None else self._planner.checkpoints
        return self._server.embedded is None or (checkpoints is not None and checkpoints.on_gpu)

    async def check(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None:
        planner = self._planner
        if spec.loop is not None and planner is not None and not planner.makes_demo(spec, load_params):
            load = await asyncio.to_thread(planner.decide, spec, load_params)
            await self._memory.check(load, in_use=self._model is not None)

    async def room(self, spec: PipelineSpec) -> Room | None:
        checkpoints = None if self._planner is None else self._planner.checkpoints
        if spec.loop is None or checkpoints is None:
            return None
        free = await self._memory.free(checkpoints.on_gpu, in_use=self._model is not None)
        return await asyncio.to_thread(checkpoints.room, spec, *free)

    async def check_room(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None:
        planner = self._planner
        if spec.loop is not None and planner is not None:
            load = await asyncio.to_thread(planner.expected, spec, load_params)
            await self._memory.check(load, in_use=self._model is not None)

    async def load(self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback) -> None:
        on_stage("Waiting for Triton...")
        client = await self._server.connected(on_stage)
        try:
            if self._loaded:  # a load that was cut short, whose models did not go in time
                on_stage("Waiting until Triton has unloaded what was there before...")
                await self._unload()
            await self._unload_leftovers(client)  # of a gateway that came and went since this one connected
            parameters: Mapping[str, str] = {}  # a pipeline without engines has nothing to be told
            plan, self._served, self._adapted = None, None, None
            if spec.loop is not None:
                plan = await self._load_engines(client, spec, load_params, on_stage)
                parameters = plan.as_parameters()
            on_stage(f"Loading {spec.name}...")
            self._loaded.append(spec.id)
            self._used.add(spec.id)
            config = json.dumps(pipeline_config(spec.id, parameters))
            await answer_of(client.load_model(spec.id, config=config), None)
            on_stage("Warming up...")
            await self._warm_up(client, spec.id)
            watched = [spec.id] if plan is not None and plan.make_room else list(self._loaded)
            problem = await why_not_served(client, watched)
            if problem is not None or client is not self._server.client:
                raise ServingError(problem or "Triton was restarted meanwhile")
            self._model, self._watched = spec.id, watched
        except BaseException as error:
            await self.unload()
            if isinstance(error, InferenceServerException):
                raise ServingError(user_text(error)) from error
            if isinstance(error, ServingLost):
                raise ServingError(f"Triton at {self.url} was lost: {error}") from error
            raise

    async def _load_engines(
        self,
        client: InferenceServerClient,
        spec: PipelineSpec,
        load_params: Mapping[str, Any],
        on_stage: StageCallback,
    ) -> LoadPlan:
        """Decide how a pipeline is served, and load engines that are Triton models of their own."""
        planner = self._planner
        assert planner is not None
        if planner.makes_demo(spec, load_params):
            adapters, vace = live_adapters(load_params), bool(load_params.get("vace_enabled"))
            await planner.sets.prepare(spec, on_stage, adapters=adapters, vace=vace)
        load = await asyncio.to_thread(planner.decide, spec, load_params)
        if isinstance(load, EngineLoad) and load.waits_for_merge:  # it was removed since, or a file is new
            await self._merge(load, on_stage)
            load = await asyncio.to_thread(planner.decide, spec, load_params)
        chosen = await self._memory.fit(load)
        on_stage(chosen.summary)
        plan, self._served = load.planned(chosen), load.served(chosen)
        logger.info("%s runs in backend %s: %s", spec.id, plan.backend, load.reason)
        if planner.adapters is not None and plan.adapters:
            kept = await asyncio.to_thread(planner.adapters.keep, plan.adapters)
            plan = plan.model_copy(update={"adapters": kept})
        if planner.adapters is not None and plan.adapted and load.transformer is not None:
            self._adapted = AdaptedLoad(planner.adapters, load.transformer, plan.adapters)
        if isinstance(load, EngineLoad) and plan.backend == "triton":
            await self._load_models(client, load, plan, on_stage)
        return self._for_models(plan)

    async def prepare(
        self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback
    ) -> None:
        planner = self._planner
        if spec.loop is None or planner is None or planner.makes_demo(spec, load_params):
            return
        load = await asyncio.to_thread(planner.decide, spec, load_params)
        if isinstance(load, EngineLoad) and load.waits_for_merge:
            await self._memory.check(load, in_use=self._model is not None)
            await self._merge(load, on_stage)

    async def _merge(self, load: EngineLoad, on_stage: StageCallback) -> None:
        """Make the engines that have the load's LoRA files in their weights. Raises ServingError."""
        planner, plan = self._planner, load.plan
        assert planner is not None
        assert planner.adapters is not None
        assert planner.merger is not None
        files = await asyncio.to_thread(planner.adapters.copied, plan.merged)
        await planner.merger.make(
            FoundSet(plan.set_directory, load.engines),
            files,
            on_stage,
            lambda: None if self.load_plan is None else self.load_plan.engine_set,
        )

    async def _load_models(
        self, client: InferenceServerClient, load: EngineLoad, plan: LoadPlan, on_stage: StageCallback
    ) -> None:
        names = plan.make_room or tuple(load.manifests)
        if plan.make_room:
            self._loaded.append(load.engines.text_encoder)  # it may be there when all has to go
        for number, name in enumerate(names, 1):
            on_stage(f"Loading engine {number} of {len(names)}: {name}...")
            await self._load_engine(client, load.manifests[name], plan)

    async def _load_engine(
        self, client: InferenceServerClient, manifest: EngineManifest, plan: LoadPlan
    ) -> None:
        """The configuration goes along: another set may have the engine served otherwise."""
        self._loaded.append(manifest.name)
        try:
            config = engine_config(manifest, plan.variant, gpus=plan.gpus)
            await answer_of(client.load_model(manifest.name, config=json.dumps(config)), None)
        except InferenceServerException as error:
            said = user_text(error)
            raise ServingError(said + why_refused(manifest, plan.variant, said)) from error

    def _for_models(self, plan: LoadPlan) -> LoadPlan:
        """The plan with the paths that Triton's models open."""
        plan = plan.model_copy(update={"preprocessors": self._preprocessors})
        embedded = self._server.embedded
        if embedded is None:
            return plan
        changes: dict[str, Any] = {"models": embedded.path_for_models(plan.models.absolute())}
        if plan.engine_set is not None:
            changes["engine_set"] = embedded.path_for_models(plan.engine_set.absolute())
        changes["adapters"] = self._adapters_for_models(plan.adapters)
        if plan.preprocessors is not None:
            changes["preprocessors"] = embedded.path_for_models(plan.preprocessors.absolute())
        if plan.pytorch is not None:
            checkpoints = embedded.path_for_models(plan.pytorch.checkpoints.absolute())
            changes["pytorch"] = plan.pytorch.model_copy(update={"checkpoints": checkpoints})
        return plan.model_copy(update=changes)

    def _adapters_for_models(self, adapters: Sequence[PlannedAdapter]) -> tuple[PlannedAdapter, ...]:
        embedded = self._server.embedded
        if embedded is None:
            return tuple(adapters)
        return tuple(
            adapter.model_copy(update={"path": embedded.path_for_models(adapter.path.absolute())})
            for adapter in adapters
        )

    async def adapt(self, loras: Sequence[Mapping[str, Any]]) -> None:
        client, model, adapted = self._server.client, self._model, self._adapted
        if client is None or model is None or adapted is None:
            raise ServingError(TAKES_NONE)
        wanted = await asyncio.to_thread(adapted.with_files, loras)
        beside = self._adapters_for_models([adapter for adapter in wanted.files if adapter.runtime])
        session = TritonSession(client, model, partial(self._model_died, client))
        try:
            await session.adapt([adapter.model_dump(mode="json") for adapter in beside])
            self._adapted = wanted
        except ChunkFailed as error:
            raise ServingError(str(error)) from error
        finally:
            await session.close()
            kept = adapted if self._adapted is not wanted else wanted
            await asyncio.to_thread(kept.forget_others)

    async def unload(self) -> None:
        await to_the_end(self._unload())

    async def _unload(self) -> None:
        self._model, self._watched, self._adapted = None, [], None
        client, names = self._server.client, list(dict.fromkeys(self._loaded[::-1]))
        if client is None:
            self._loaded.clear()
            return  # the server is gone; should it come back with them, they are unloaded then
        # The pipeline first, since it calls the engines; these then all at once, for each takes a second.
        unloaded = [await self._unload_one(client, name) for name in names[:1]]
        unloaded += await asyncio.gather(*(self._unload_one(client, name) for name in names[1:]))
        if not all(unloaded) and self._server.embedded is not None:
            logger.warning("Triton is started anew, to get the memory back")
            self._loaded.clear()
            self._server.restart()

    async def _unload_one(self, client: InferenceServerClient, name: str) -> bool:
        """Whether it is gone; if not, it stays among those that may be on the server."""
        unloading, late = map(asyncio.ensure_future, (unload_model(client, name), self._too_late()))
        try:
            await asyncio.wait({unloading, late}, return_when=asyncio.FIRST_COMPLETED)
            in_time = unloading.done()
        finally:
            await end(unloading, late)
        error = unloading.exception() if in_time else NoAnswerError("it takes too long")
        if error is not None and not isinstance(error, (ServingError, InferenceServerException)):
            raise error
        if error is not None:
            logger.warning("Model %s could not be unloaded: %s", name, error)
            return False
        self._loaded = [other for other in self._loaded if other != name]
        return True

    async def _too_late(self) -> None:
        """Wait for as long as an unload may take; that is not long once the gateway is being stopped."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._hurry.wait(), _UNLOAD_S)
            await asyncio.sleep(_CLOSE_S)

    def open_session(self) -> TritonSession:
        client, model = self._server.client, self._model
        if client is None or model is None:
            raise ServingLost("Triton is not connected; load the pipeline again.")
        shared = None
        embedded = self._server.embedded
        prefix = self._beside if embedded is None else embedded.shared_memory_prefix
        if prefix:
            one_part = SPECS[model].loop is None
            shared = SharedFrames(client, prefix, both_ways=one_part)
        session = TritonSession(client, model, partial(self._model_died, client), shared)
        self._sessions_open.add(session)
        return session

    async def gpu_memory_bytes(self) -> tuple[int, int] | None:
        if self._metrics_url is not None:
            return await _memory_from_metrics(self._metrics_url)
        return await asyncio.to_thread(gpu_memory_bytes)

    def hurry(self) -> None:
        self._hurry.set()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.hurry()
        await self._server.disconnect()
        if self._probe is not None:
            await end(self._probe)
        await self.unload()
        await self._server.close()

    async def _look(self, client: InferenceServerClient) -> None:
        """Give the server up when it does not hold what is loaded. Raises as `answer_of`."""
        watched, model = list(self._watched), self._model
        try:
            problem = await why_not_served(client, watched)
        except NoAnswerError:
            if watched:
                raise
            return  # nobody waits for it
        died = await self._process_died()
        if watched != self._watched:  # it was unloaded meanwhile
            return
        if died and model is not None:
            self._model_died(client, "a process of it is dead")
            return
        if problem is not None:
            self._server.lose(f"Triton at {self.url} lost the pipeline: {problem}.")
        elif model is not None and (self._probe is None or self._probe.done()):
            self._probe = asyncio.create_task(self._probe_process(client, model), name="triton-probe")

    async def _process_died(self) -> bool:
        """Whether a model process of an embedded server is dead; one that ends in order is so briefly."""
        embedded, before = self._server.embedded, self._dead_processes
        if embedded is None or self._model is None:
            return False
        self._dead_processes = await asyncio.to_thread(embedded.dead_processes)
        return bool(before & self._dead_processes)  # twice

    async def _probe_process(self, client: InferenceServerClient, model: str) -> None:
        """Find a dead model process when nobody streams; a stream meets it by itself."""
        if all(session.closed for session in self._sessions_open):
            session = TritonSession(client, model, partial(self._model_died, client))
            try:
                await session.probe()
            finally:
                await session.close()

    async def _prepare(self, client: InferenceServerClient) -> None:
        """Before a new connection is used. Raises as `answer_of`, and ServingError for another version."""
        await check_version(client, self.url)
        await self._unload_leftovers(client)

    async def _unload_leftovers(self, client: InferenceServerClient) -> None:
        """What a killed gateway, or a broken connection, left on the server goes away.

        Raises ServingError while another gateway uses it.
        """
        states = await model_states(client)
        left = sorted(name for name in self._own_models() if states.get(name) in (READY, LOADING))
        pipelines = [name for name in left if name in SPECS and states[name] == READY]
        if others := set(pipelines) - self._used:
            before = await answered_requests(client, others)
            await asyncio.sleep(_OTHER_GATEWAY_S)
            if await answered_requests(client, others) != before:
                raise ServingError(
                    f"Another gateway uses Triton at {self.url}: model '{min(others)}' answers requests. A "
                    "Triton serves one gateway: stop the other one, or give this one a Triton of its own."
                )
        if self._beside:
            await remove_left_frames(client, self._beside)
        if left:
            logger.warning("Triton holds models of an earlier connection; unloading %s", ", ".join(left))
            dead, self._dead = self._dead, set()
            await unload_leftovers(client, left, dead=dead, limit_s=_UNLOAD_S)

    def _own_models(self) -> set[str]:
        """Names of all models that a gateway may have loaded."""
        pipelines = {source.parent.parent.name for source in self._repository.glob(f"*/{MODEL_SOURCE}")}
        if self._engines is None:
            return pipelines
        return pipelines | {config.parent.name for config in self._engines.models.glob(f"*/{CONFIG}")}

    def _model_died(self, client: InferenceServerClient, text: str) -> None:
        """A model process is dead, or the model is gone."""
        if client is not self._server.client:
            return  # a stream on an earlier connection learns of its end late
        if self._server.embedded is not None:
            self._server.lose("A model process of Triton died; the server is being restarted.")
            return
        self._dead |= dead_models(text)
        self._server.lose(f"Triton at {self.url} lost the pipeline: {text.rstrip('.')}.")

    def _lost(self, text: str) -> None:
        self._model, self._watched = None, []
        self._loaded.clear()
        self._on_lost(text)

    async def _warm_up(self, client: InferenceServerClient, name: str) -> None:
        session = TritonSession(client, name, partial(self._model_died, client))
        try:
            await session.warm_up()
        except ChunkFailed as error:
            raise ServingError(str(error)) from error
        finally:
            await session.close()


async def _memory_from_metrics(url: str) -> tuple[int, int] | None:
    """(used, total) bytes of the first GPU in Triton's Prometheus metrics."""
    try:
        async with httpx.AsyncClient(timeout=_METRICS_S, trust_env=False) as http:  # no proxy, as for gRPC
            text = (await http.get(url)).text
    except httpx.HTTPError:
        return None
    values = []
    for name in ("nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"):
        match = re.search(rf"^{name}\{{[^}}]*\}} ([0-9.e+]+)$", text, re.MULTILINE)
        if match is None:
            return None
        values.append(int(float(match.group(1))))
    return values[0], values[1]
