"""Triton as the serving side: model control, one sequence per session, recovery.

The only module that imports tritonclient.
"""

import asyncio
import contextlib
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc import InferInput, KeepAliveOptions, model_config_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from gateway.embedded import EmbeddedTriton
from gateway.serving import Availability, Chunk, ChunkFailed, Images, ServingError, ServingLost, StageCallback
from streaming.errors import WanstreamError
from streaming.protocol import (
    FRAMES_OUTPUT,
    META_OUTPUT,
    ONE_SHOT,
    PARAMS_INPUT,
    VIDEO_INPUT,
    Meta,
    Op,
    decode_error,
)
from streaming.specs import PipelineSpec

logger = logging.getLogger(__name__)

_QUICK_S = 2.0  # calls that answer at once when the server is well
_UNLOAD_S = 15.0
_POLL_S = 0.05
_RESTART_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
_CHUNK_TIMEOUT_S = 300.0
_CLOSE_S = 2.0
_DEAD_STUB = "is not healthy"  # in 2.51 the only sign of a dead model process: it still reports READY
_UNKNOWN_SEQUENCE = "must specify the START flag"
_BROKEN = "The connection to Triton broke. Load the pipeline again."
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
    ) -> None:
        """repository: where the pipelines' `config.pbtxt` are. Give one of external_url and embedded.

        external_url: host:port of gRPC. metrics_url: http://host:port/metrics, the source of GPU memory.
        """
        if (external_url is None) == (embedded is None):
            raise ValueError("give either external_url or embedded")
        self._repository = repository
        self._external_url = external_url
        self._metrics_url = metrics_url
        self._embedded = embedded
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
        try:
            return bool(await asyncio.wait_for(client.is_server_ready(), _QUICK_S))
        except (InferenceServerException, grpc.RpcError, asyncio.TimeoutError):
            return False

    def availability(self, spec: PipelineSpec) -> Availability:
        if (self._repository / spec.id / "config.pbtxt").is_file():
            return Availability(True)
        return Availability(
            False,
            f"Pipeline '{spec.id}' is not part of this version of wanstream: there is no model "
            f"'{spec.id}' in the model repository.",
        )

    async def load(self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback) -> None:
        on_stage("Waiting for Triton...")
        client = await self._connected()
        config = self._config(spec.id, load_params)
        try:
            on_stage(f"Loading {spec.name}...")
            self._loaded.append(spec.id)
            await client.load_model(spec.id, config=config)
            on_stage("Warming up...")
            await self._warm_up(spec.id)
        except BaseException as error:
            await self._undo()
            if isinstance(error, InferenceServerException):
                raise ServingError(user_text(error)) from error
            if isinstance(error, grpc.RpcError):
                raise ServingError(f"Triton at {self.url} cannot be reached") from error
            raise

    async def unload(self) -> None:
        client = self._client
        while self._loaded:
            name = self._loaded.pop()
            if client is None or not self._up.is_set():
                continue  # the server is gone, and its models with it
            try:
                await asyncio.wait_for(self._unload_model(client, name), _UNLOAD_S)
            except (InferenceServerException, grpc.RpcError, asyncio.TimeoutError) as error:
                logger.warning(
                    "Model %s could not be unloaded cleanly: %s", name, error or type(error).__name__
                )

    def open_session(self) -> "TritonSession":
        if self._client is None or not self._loaded:
            raise ServingLost("Triton is not connected; load the pipeline again.")
        return TritonSession(self._client, self._loaded[-1], self._model_died)

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
        await self.unload()
        await self._disconnect()
        if self._embedded is not None:
            await self._embedded.stop(timeout_s=3)

    async def _connected(self) -> InferenceServerClient:
        while not self._up.is_set():
            if self._last_error is not None and self._embedded is not None:
                raise ServingError(self._last_error)
            await asyncio.wait({asyncio.ensure_future(self._up.wait())}, timeout=_POLL_S * 2)
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


class TritonSession:
    """One sequence on a pipeline's model, over one long-lived gRPC stream."""

    def __init__(self, client: Any, model: str, on_dead: Callable[[str], None]) -> None:
        self._client = client
        self._model = model
        self._on_dead = on_dead
        self._sequence_id = 0
        self._parameters: dict[str, Any] = {}  # of the last good chunk, for a restart of the sequence
        self._requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._responses: Any = None
        self._closed = False

    async def generate(self, parameters: Mapping[str, Any], video: Images | None) -> AsyncIterator[Chunk]:
        """See ServingSession. Each part is yielded as soon as it arrives."""
        if not self._sequence_id:
            await self._start({})
        try:
            async for chunk in self.request(Op.GENERATE, parameters, video):
                yield chunk
        except ChunkFailed as error:
            if _UNKNOWN_SEQUENCE not in str(error):
                raise
            logger.info("The sequence idled out; starting it again")
            await self._start(self._parameters)
            async for chunk in self.request(Op.GENERATE, {**parameters, "init_cache": True}, video):
                yield chunk
        self._parameters.update((k, v) for k, v in parameters.items() if k not in ONE_SHOT)

    async def keep_alive(self) -> None:
        if not self._sequence_id:
            return
        try:
            async for _ in self.request(Op.KEEP_ALIVE, {}, None):
                pass
        except ServingError as error:
            logger.info("The sequence could not be kept alive: %s", error)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._sequence_id:
            with contextlib.suppress(ServingError, asyncio.TimeoutError):
                await asyncio.wait_for(self._stop(), _CLOSE_S)
        self._hang_up()

    async def request(
        self,
        op: Op,
        parameters: Mapping[str, Any],
        video: Images | None,
        *,
        start: bool = False,
        end: bool = False,
    ) -> AsyncIterator[Chunk]:
        """Send one command and yield its responses until the final one.

        Closing the iterator early cancels the request. Raises ChunkFailed, ServingLost.
        """
        if start:
            self._sequence_id = secrets.randbelow(2**63 - 1) + 1
        request = {
            "model_name": self._model,
            "inputs": _inputs(op, parameters, video),
            "sequence_id": self._sequence_id,
            "sequence_start": start,
            "sequence_end": end,
        }
        finished = False
        try:
            self._send(request)
            while not finished:
                chunk, finished = await self._receive()
                yield chunk
        except ChunkFailed:
            finished = True  # an error response is final, the stream stays usable
            raise
        finally:
            if not finished:
                self._hang_up()

    async def _start(self, parameters: Mapping[str, Any]) -> None:
        async for _ in self.request(Op.START, parameters, None, start=True):
            pass

    async def _stop(self) -> None:
        async for _ in self.request(Op.STOP, {}, None, end=True):
            pass

    def _send(self, request: dict[str, Any]) -> None:
        if self._responses is None:
            self._requests = asyncio.Queue()
            try:
                self._responses = self._client.stream_infer(_drain(self._requests))
            except grpc.aio.UsageError as closed:
                raise ServingLost(_BROKEN) from closed
        self._requests.put_nowait(request)

    async def _receive(self) -> tuple[Chunk, bool]:
        try:
            result, error = await self._read()
        except (grpc.RpcError, InferenceServerException, StopAsyncIteration) as lost:
            self._hang_up()
            self._on_dead(_BROKEN)
            raise ServingLost(_BROKEN) from lost
        if error is not None:
            text, fatal = decode_error(user_text(error))
            if _DEAD_STUB in text:
                self._on_dead(text)
                raise ServingLost("The model process of the pipeline died. Load the pipeline again.")
            raise ChunkFailed(text, fatal=fatal)
        response = result.get_response()
        final = response.parameters["triton_final_response"].bool_param
        frames = result.as_numpy(FRAMES_OUTPUT)
        meta = result.as_numpy(META_OUTPUT)
        return Chunk(
            np.zeros((0, 1, 1, 3), np.uint8) if frames is None else frames,
            Meta() if meta is None else json.loads(meta.reshape(-1)[0]),
        ), final

    async def _read(self) -> Any:
        """The next item of the stream.

        In a task of its own, because grpc also reports a closed channel as a cancellation: without it the
        caller would be taken for cancelled.
        """
        reading = asyncio.ensure_future(self._responses.__anext__())
        try:
            await asyncio.wait({reading}, timeout=_CHUNK_TIMEOUT_S)
        finally:
            reading.cancel()
        if reading.cancelled():
            raise ServingLost(_BROKEN)
        if not reading.done():
            raise ServingLost(f"No answer from Triton within {_CHUNK_TIMEOUT_S:.0f} s.")
        return reading.result()

    def _hang_up(self) -> None:
        """Drop the stream; the model notices the cancellation before its next step."""
        if self._responses is not None:
            self._requests.put_nowait(None)
            self._responses.cancel()
            self._responses = None


def user_text(error: InferenceServerException) -> str:
    """The sentence a model raised, without Triton's and Python's wrapping."""
    text = str(error.message() or error)
    match = re.search(r"(?:Internal: |message: )(.*?)(?=\n\nAt:|;?\n*$)", text, re.DOTALL)
    if match:
        text = re.sub(r"^\w*(?:Error|Exception): ", "", match.group(1))
    return text.strip()


async def _drain(requests: asyncio.Queue[dict[str, Any] | None]) -> AsyncIterator[dict[str, Any]]:
    while (request := await requests.get()) is not None:
        yield request


def _inputs(op: Op, parameters: Mapping[str, Any], video: Images | None) -> list[InferInput]:
    command = InferInput(PARAMS_INPUT, [1], "BYTES")
    document = json.dumps({"op": op.value, "parameters": dict(parameters)}).encode()
    command.set_data_from_numpy(np.array([document], dtype=np.object_))
    if video is None:
        return [command]
    frames = InferInput(VIDEO_INPUT, list(video.shape), "UINT8")
    frames.set_data_from_numpy(video)
    return [command, frames]


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
