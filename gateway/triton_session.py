"""One viewer's sequence on a Triton model, and the gRPC stream that carries it."""

import asyncio
import contextlib
import json
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from gateway.serving import Chunk, ChunkFailed, Images, ServingError, ServingLost
from gateway.shared_frames import SharedFrames
from gateway.waiting import within
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

logger = logging.getLogger(__name__)

_CHUNK_TIMEOUT_S = 300.0
_CLOSE_S = 2.0
_END_S = 1.0  # how long a chunk that nobody wants may go on before it is cancelled
# In 2.51 the only sign of a dead model process: its model still reports READY.
_DEAD_PROCESS = re.compile(r"Stub process '([\w.-]+?)(?:_\d+)*' is not healthy")
# The server was restarted, or somebody else unloads models from it. The last is about a pipeline's engine.
_MODEL_LOST = re.compile(
    rf"{_DEAD_PROCESS.pattern}|Request for unknown model|has no available versions|Model '\S+' is not ready"
)
_UNKNOWN_SEQUENCE = "must specify the START flag"
_BROKEN = "The connection to Triton broke. Load the pipeline again."


class TritonSession:
    """One sequence on a pipeline's model, over one long-lived gRPC stream."""

    def __init__(
        self,
        client: Any,
        model: str,
        on_dead: Callable[[str], None],
        shared: SharedFrames | None = None,
        *,
        in_parts: bool = True,
    ) -> None:
        """shared: memory in which pictures travel instead of in messages, or None.

        in_parts: the model answers in several parts, of which the first comes long before the last.
        """
        self._client = client
        self._shared = shared
        self._in_parts = in_parts
        self._model = model
        self._on_dead = on_dead
        self._sequence_id = 0
        self._parameters: dict[str, Any] = {}  # of the last good chunk, for a restart of the sequence
        self._stream: _Stream | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._closed = False

    async def generate(
        self, parameters: Mapping[str, Any], video: Images | None
    ) -> AsyncGenerator[Chunk, None]:
        """See ServingSession. Each part is yielded as soon as it arrives."""
        if not self._sequence_id:
            await self._start({})
        try:
            async with contextlib.aclosing(self.request(Op.GENERATE, parameters, video)) as parts:
                async for chunk in parts:
                    yield chunk
        except ChunkFailed as error:
            if _UNKNOWN_SEQUENCE not in str(error):
                raise
            logger.info("The sequence idled out; starting it again")
            await self._start(self._parameters)
            again = {**parameters, "init_cache": True}
            async with contextlib.aclosing(self.request(Op.GENERATE, again, video)) as parts:
                async for chunk in parts:
                    yield chunk
        self._parameters.update((k, v) for k, v in parameters.items() if k not in ONE_SHOT)

    @property
    def closed(self) -> bool:
        return self._closed

    async def probe(self) -> None:
        """Ask the model's process for nothing: a dead one is told to `on_dead`. In place of a stream."""
        with contextlib.suppress(ServingError):  # any other answer is one of a living process
            async for _ in self.request(Op.PROBE, {}, None, start=True, end=True):
                pass

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
                await within(self._stop(), _CLOSE_S)
        self._hang_up(self._stream)
        if self._endings:
            await asyncio.wait(set(self._endings))
        if self._shared is not None:
            await self._shared.close()

    async def request(
        self,
        op: Op,
        parameters: Mapping[str, Any],
        video: Images | None,
        *,
        start: bool = False,
        end: bool = False,
    ) -> AsyncGenerator[Chunk, None]:
        """Send one command and yield its responses until the final one.

        Closing the iterator early cancels the request. Raises ChunkFailed, ServingLost.
        """
        if start:
            self._sequence_id = secrets.randbelow(2**63 - 1) + 1
        request = {
            "model_name": self._model,
            **await self._payload(op, parameters, video),
            "sequence_id": self._sequence_id,
            "sequence_start": start,
            "sequence_end": end,
        }
        answered = finished = False
        stream: _Stream | None = None
        try:
            stream = self._stream = self._stream or _Stream(self._client)
            stream.send(request)
            while not finished:
                chunk, finished = await self._receive(stream, to_video=video is not None)
                answered = True
                yield chunk
        except ChunkFailed:
            finished = True  # an error response is final, the stream stays usable
            raise
        finally:
            if not finished:
                self._hang_up(stream, at_once=op is Op.GENERATE and self._in_parts and not answered)

    async def _start(self, parameters: Mapping[str, Any]) -> None:
        async for _ in self.request(Op.START, parameters, None, start=True):
            pass

    async def _stop(self) -> None:
        async for _ in self.request(Op.STOP, {}, None, end=True):
            pass

    async def _payload(self, op: Op, parameters: Mapping[str, Any], video: Images | None) -> dict[str, Any]:
        """`inputs` and `outputs` of a request. Raises ServingLost."""
        command = InferInput(PARAMS_INPUT, [1], "BYTES")
        document = json.dumps({"op": op.value, "parameters": dict(parameters)}).encode()
        command.set_data_from_numpy(np.array([document], dtype=np.object_))
        if video is None:
            return {"inputs": [command]}
        frames = InferInput(VIDEO_INPUT, list(video.shape), "UINT8")
        try:
            if self._shared is not None:
                await self._shared.put(video)
        except OSError as error:
            logger.warning("Pictures travel in messages, which takes longer: no shared memory (%s)", error)
            self._shared = None
        except (grpc.RpcError, grpc.aio.UsageError, InferenceServerException) as error:
            self._on_dead(_BROKEN)
            raise ServingLost(_BROKEN) from error
        if self._shared is None:
            frames.set_data_from_numpy(video)
            return {"inputs": [command, frames]}
        frames.set_shared_memory(self._shared.region, video.nbytes)
        if not self._shared.both_ways:
            return {"inputs": [command, frames]}
        size = self._shared.bytes_each
        output = InferRequestedOutput(FRAMES_OUTPUT)
        output.set_shared_memory(self._shared.region, size, offset=size)
        return {"inputs": [command, frames], "outputs": [output, InferRequestedOutput(META_OUTPUT)]}

    async def _receive(self, stream: "_Stream", *, to_video: bool) -> tuple[Chunk, bool]:
        try:
            result, error = await stream.receive()
        except ServingLost as lost:
            self._on_dead(str(lost))
            raise
        if error is not None:
            text, fatal = decode_error(user_text(error))
            if _MODEL_LOST.search(text):
                self._on_dead(text)
                died = "The model process of the pipeline died." if dead_models(text) else f"Triton: {text}."
                raise ServingLost(f"{died} Load the pipeline again.")
            raise ChunkFailed(text, fatal=fatal)
        response = result.get_response()
        final = response.parameters["triton_final_response"].bool_param
        if self._shared is not None and self._shared.both_ways and to_video:
            frames = self._shared.get(list(result.get_output(FRAMES_OUTPUT).shape))
        else:
            frames = result.as_numpy(FRAMES_OUTPUT)
        meta = result.as_numpy(META_OUTPUT)
        return Chunk(
            np.zeros((0, 1, 1, 3), np.uint8) if frames is None else frames,
            Meta() if meta is None else json.loads(meta.reshape(-1)[0]),
        ), final

    def _hang_up(self, stream: "_Stream | None", *, at_once: bool = False) -> None:
        """Give up a stream. What still runs on it is cancelled; `close` waits for its end.

        at_once: what runs has many responses, of which none came.
        """
        if stream is not None and stream is self._stream:
            self._stream = None
            ending = asyncio.create_task(stream.end(0.0 if at_once else _END_S))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)


class _Stream:
    """One bidirectional gRPC stream, read by a task of its own until it ends.

    Triton 2.51 can keep a request for ever when its stream is cancelled just as the last response goes out:
    the model then never unloads and the server never stops. So a stream is closed from our side and read to
    its end; only a chunk that goes on for longer, or has not begun to answer, is cancelled. grpc reports a
    closed channel as a cancellation; here only the reading task sees it, and the session's own task is not
    taken for cancelled.
    """

    def __init__(self, client: InferenceServerClient) -> None:
        """Raises ServingLost when the connection is closed."""
        self._requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._items: asyncio.Queue[tuple[Any, Any] | None] = asyncio.Queue()
        try:
            self._call = client.stream_infer(self._drain())
        except grpc.aio.UsageError as closed:
            raise ServingLost(_BROKEN) from closed
        self._reader = asyncio.create_task(self._read(), name="triton-stream")

    def send(self, request: dict[str, Any]) -> None:
        self._requests.put_nowait(request)

    async def receive(self) -> tuple[Any, Any]:
        """(result, error) of the next response; one of them is None. Raises ServingLost."""
        try:
            item = await within(self._items.get(), _CHUNK_TIMEOUT_S)
        except asyncio.TimeoutError as timeout:
            raise ServingLost(f"No answer from Triton within {_CHUNK_TIMEOUT_S:.0f} s.") from timeout
        if item is None:
            raise ServingLost(_BROKEN)
        return item

    async def end(self, patience_s: float) -> None:
        """Close the stream and wait until it is read to its end; cancel it if that takes longer."""
        self._requests.put_nowait(None)
        await asyncio.wait({self._reader}, timeout=patience_s)
        if not self._reader.done():
            self._call.cancel()
            await asyncio.wait({self._reader}, timeout=_END_S)

    async def _read(self) -> None:
        try:
            async for item in self._call:
                self._items.put_nowait(item)
        except (grpc.RpcError, InferenceServerException, asyncio.CancelledError) as error:
            logger.debug("A stream to Triton ended: %r", error)
        finally:
            self._items.put_nowait(None)

    async def _drain(self) -> AsyncIterator[dict[str, Any]]:
        while (request := await self._requests.get()) is not None:
            yield request


def dead_models(text: str) -> set[str]:
    """Names of the models whose process an error of Triton's calls dead."""
    return set(_DEAD_PROCESS.findall(text))


def user_text(error: InferenceServerException) -> str:
    """The sentence a model raised, without Triton's and Python's wrapping."""
    text = str(error.message() or error)
    match = re.search(r"(?:Internal: |message: )(.*?)(?=\n\nAt:|;?\n*$)", text, re.DOTALL)
    if match:
        text = re.sub(r"^\w*(?:Error|Exception): ", "", match.group(1))
    return text.strip()
