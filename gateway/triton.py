"""Triton as the serving side: model control, one sequence per session, recovery.

Only this module and `triton_session` import tritonclient.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.protobuf import json_format, text_format
from tritonclient.grpc import KeepAliveOptions, model_config_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from gateway.embedded import EmbeddedTriton
from gateway.engine_checks import why_refused
from gateway.engine_sets import EngineSets
from gateway.memory import Memory
from gateway.serving import Availability, ChunkFailed, ServingError, ServingLost, StageCallback
from gateway.shared_frames import SharedFrames
from gateway.triton_session import TritonSession, user_text
from gateway.waiting import within
from streaming.engine_set import ENGINE_SET, MODELS, ON_DEMAND
from streaming.errors import WanstreamError
from streaming.plans import models_of
from streaming.protocol import Op
from streaming.specs import SPECS, PipelineSpec

logger = logging.getLogger(__name__)

_QUICK_S = 2.0  # calls that answer at once when the server is well
_UNLOAD_S = 15.0  # 1.2 s is typical, a multiple of that on a busy machine
_CLOSE_S = 2.0
_POLL_S = 0.05
_RESTART_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
_KEEP_ALIVE = KeepAliveOptions(
    keepalive_time_ms=20_000, keepalive_timeout_ms=10_000, keepalive_permit_without_calls=True
)


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
        memory_limit_bytes: int | None = None,
    ) -> None:
        """repository: where the pipelines' `config.pbtxt` are. Give one of external_url and embedded.

        external_url: host:port of gRPC. metrics_url: http://host:port/metrics, the source of GPU memory.
        engines: what `wanstream-export` wrote, for the pipelines with a model. memory_limit_bytes: what these
        may take with all sessions; None: what is free.
        """
        if (external_url is None) == (embedded is None):
            raise ValueError("give either external_url or embedded")
        self._repository = repository
        self._external_url = external_url
        self._metrics_url = metrics_url
        self._embedded = embedded
        self._engines = engines
        self._memory = Memory(
            self.gpu_memory_bytes, on_cpu=embedded is not None, limit_bytes=memory_limit_bytes
        )
        self._sessions: int | None = None  # how many have room beside what is loaded
        self._client: InferenceServerClient | None = None
        self._loaded: list[str] = []  # models on the server, in the order of loading
        self._on_lost: Callable[[str], None] = lambda text: None
        self._keeper: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._last_error: str | None = None
        self._closed = False
        if embedded is not None:
            embedded.on_exit = self._server_exited

    @property
    def url(self) -> str:
        if self._external_url is not None:
            return self._external_url
        assert self._embedded is not None
        return self._embedded.grpc_url if self._embedded.running else "embedded"

    async def start(self, on_lost: Callable[[str], None]) -> None:
        self._on_lost = on_lost
        self._keeper = asyncio.create_task(self._keep_running(), name="triton-keeper")

    async def is_ready(self) -> bool:
        client = self._client
        if client is None:
            return False
        # Not awaited directly: to grpc a channel that is closed meanwhile is a cancellation of the caller.
        asking = asyncio.ensure_future(client.is_server_ready())
        try:
            await asyncio.wait({asking}, timeout=_QUICK_S)
            answered = asking.done() and not asking.cancelled() and asking.exception() is None
            return answered and bool(asking.result())
        finally:
            asking.cancel()

    def availability(self, spec: PipelineSpec) -> Availability:
        if (self._repository / spec.id / "config.pbtxt").is_file():
            if spec.loop is None:
                return Availability(True)
            if self._engines is not None:
                found = self._engines.availability(spec)
                is_loaded = self._loaded[-1:] == [spec.id]
                return replace(found, max_sessions=self._sessions) if is_loaded else found
        return Availability(
            False,
            f"Pipeline '{spec.id}' is not part of this version of wanstream: there is no model "
            f"'{spec.id}' in the model repository.",
        )

    async def load(self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback) -> None:
        on_stage("Waiting for Triton...")
        client = await self._connected()
        try:
            parameters = dict(load_params)
            if spec.loop is not None:
                parameters |= await self._load_engines(client, spec, load_params, on_stage)
            on_stage(f"Loading {spec.name}...")
            self._loaded.append(spec.id)
            await client.load_model(spec.id, config=self._config(spec.id, parameters))
            on_stage("Warming up...")
            await self._warm_up(spec.id)
        except BaseException as error:
            await self._undo()
            if isinstance(error, InferenceServerException):
                raise ServingError(user_text(error)) from error
            if isinstance(error, grpc.RpcError):
                raise ServingError(f"Triton at {self.url} cannot be reached") from error
            raise

    async def _load_engines(
        self,
        client: InferenceServerClient,
        spec: PipelineSpec,
        load_params: Mapping[str, Any],
        on_stage: StageCallback,
    ) -> dict[str, str]:
        """Load the engines that a pipeline calls; returns parameters that tell its model where they are."""
        assert self._engines is not None
        await self._engines.prepare(spec, on_stage)
        found = await asyncio.to_thread(self._engines.find, spec, load_params)
        size = (load_params["height"], load_params["width"])
        await asyncio.to_thread(self._engines.check, found, found.content.engines(size))
        names = list(await asyncio.to_thread(models_of, found.content, self._engines.models, size))
        chosen = await self._memory.fit(found.content, self._engines.models, spec, load_params)
        on_stage(chosen.summary)
        self._sessions = chosen.sessions
        directories = {ENGINE_SET: found.directory, MODELS: self._engines.models}
        parameters = {name: str(self._path_for_models(path)) for name, path in directories.items()}
        if chosen.text_encoder_on_demand:
            names.remove(found.content.text_encoder)
            self._loaded.append(found.content.text_encoder)  # it may be there when all has to go
            parameters[ON_DEMAND] = "true"
        for number, name in enumerate(names, 1):
            on_stage(f"Loading engine {number} of {len(names)}: {name}...")
            self._loaded.append(name)
            try:
                await client.load_model(name)
            except InferenceServerException as error:
                raise ServingError(user_text(error) + why_refused(self._engines.models, name)) from error
        return parameters

    def _path_for_models(self, path: Path) -> Path:
        return path if self._embedded is None else self._embedded.path_for_models(path.absolute())

    async def unload(self) -> None:
        await self._unload(_UNLOAD_S)

    async def _unload(self, timeout_s: float) -> None:
        client, names = self._client, self._loaded[::-1]
        self._loaded.clear()
        if client is None or not self._up.is_set():
            return  # the server is gone, and its models with it
        # The pipeline first, since it calls the engines; these then all at once, for each takes a second.
        unloaded = [await self._unload_within(client, name, timeout_s) for name in names[:1]]
        unloaded += await asyncio.gather(
            *(self._unload_within(client, name, timeout_s) for name in names[1:])
        )
        if not all(unloaded) and self._embedded is not None:
            logger.warning("Triton is started anew, to get the memory back")
            self._up.clear()
            self._down.set()

    async def _unload_within(self, client: InferenceServerClient, name: str, timeout_s: float) -> bool:
        try:
            await within(self._unload_model(client, name), timeout_s)
        except (InferenceServerException, grpc.RpcError, asyncio.TimeoutError) as error:
            reason = str(error) or f"it takes longer than {timeout_s:.0f} s"
            logger.warning("Model %s could not be unloaded: %s", name, reason)
            return False
        return True

    def open_session(self) -> TritonSession:
        if self._client is None or not self._loaded:
            raise ServingLost("Triton is not connected; load the pipeline again.")
        model = self._loaded[-1]
        in_parts = SPECS[model].loop is not None
        shared = None
        if self._embedded is not None:
            prefix = self._embedded.shared_memory_prefix
            shared = SharedFrames(self._client, prefix, both_ways=not in_parts)
        return TritonSession(self._client, model, self._model_died, shared, in_parts=in_parts)

    async def gpu_memory_bytes(self) -> tuple[int, int] | None:
        if self._metrics_url is not None:
            return await _memory_from_metrics(self._metrics_url)
        return await asyncio.to_thread(_memory_from_nvml)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._unload(_CLOSE_S)
        await self._disconnect()
        if self._embedded is not None:
            await self._embedded.stop(timeout_s=3)

    async def _connected(self) -> InferenceServerClient:
        while not self._up.is_set():
            if self._last_error is not None and self._embedded is not None:
                raise ServingError(self._last_error)
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._up.wait(), _POLL_S * 2)
        assert self._client is not None
        return self._client

    async def _keep_running(self) -> None:
        """Start or find the server, and again after it died; with growing pauses while that fails."""
        attempt = 0
        while True:
            try:
                await self._bring_up()
                attempt = 0
                self._last_error = None
                self._down.clear()
                self._up.set()
                await self._down.wait()
                self._up.clear()
                await self._disconnect()
                if self._embedded is not None:
                    await self._embedded.stop(timeout_s=0)
            except WanstreamError as error:
                if str(error) != self._last_error:
                    logger.error("%s", error)
                self._last_error = str(error)
                await asyncio.sleep(_RESTART_BACKOFF_S[min(attempt, len(_RESTART_BACKOFF_S) - 1)])
                attempt += 1

    async def _bring_up(self) -> None:
        if self._embedded is not None:
            if not self._embedded.running:
                await self._embedded.start()
            self._client = InferenceServerClient(self._embedded.grpc_url)
            return
        assert self._external_url is not None
        self._client = InferenceServerClient(self._external_url, keepalive_options=_KEEP_ALIVE)
        if not await self.is_ready():
            await self._disconnect()
            raise ServingError(
                f"Triton at {self._external_url} does not answer. Check --triton-url (host:port of its gRPC "
                "endpoint) and that the server runs with --model-control-mode=explicit."
            )
        logger.info("Connected to Triton at %s", self._external_url)

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(grpc.RpcError, InferenceServerException):
                await client.close()

    def _server_exited(self, text: str) -> None:
        self._lost("The Triton server died and is being restarted. Load the pipeline again.")

    def _model_died(self, text: str) -> None:
        """A model process is dead; only a new server gets rid of its remains."""
        if self._embedded is not None:
            self._lost(
                "A model process of Triton died; the server is being restarted. Load the pipeline again."
            )
        else:
            self._lost(f"Triton at {self.url} lost the pipeline: {text}. Load the pipeline again.")

    def _lost(self, text: str) -> None:
        if self._up.is_set() and not self._down.is_set() and not self._closed:
            logger.error("%s", text)
            self._up.clear()
            self._down.set()
            self._loaded.clear()
            self._on_lost(text)

    def _config(self, name: str, load_params: Mapping[str, Any]) -> str:
        """Complete model configuration as JSON: an override replaces the file, it is not merged with it."""
        config = text_format.Parse(
            (self._repository / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
        )
        for key, value in load_params.items():
            text = value if isinstance(value, str) else json.dumps(value)
            config.parameters[key].string_value = text
        return json_format.MessageToJson(config, preserving_proto_field_name=True)

    async def _warm_up(self, name: str) -> None:
        session = TritonSession(self._client, name, self._model_died)
        try:
            async for _ in session.request(Op.WARMUP, {}, None, start=True, end=True):
                pass
        except ChunkFailed as error:
            raise ServingError(str(error)) from error
        finally:
            await session.close()

    async def _undo(self) -> None:
        """Unload what a failed or cancelled load has left; the cancellation waits for it."""
        cleaning = asyncio.ensure_future(self.unload())
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(cleaning)
        await cleaning

    async def _unload_model(self, client: InferenceServerClient, name: str) -> None:
        await client.unload_model(name)
        while await _model_state(client, name) not in ("", "UNAVAILABLE"):  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(_POLL_S)


async def _model_state(client: InferenceServerClient, name: str) -> str:
    index = await client.get_model_repository_index(as_json=True)
    states = {model["name"]: model.get("state", "") for model in index.get("models", [])}
    return str(states.get(name, ""))


async def _memory_from_metrics(url: str) -> tuple[int, int] | None:
    """(used, total) bytes of the first GPU in Triton's Prometheus metrics."""
    try:
        async with httpx.AsyncClient(timeout=_QUICK_S) as http:
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


def _memory_from_nvml() -> tuple[int, int] | None:
    import pynvml  # here: the library looks for a driver that most gateways do not have

    try:
        pynvml.nvmlInit()
        memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError:
        return None
    return int(memory.used), int(memory.total)
