"""One viewer's sequence on a Triton model, and the gRPC stream that carries it."""

import asyncio
import contextlib
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from gateway.serving.interface import Chunk, ChunkFailed, Images, ServingError, ServingLost
from gateway.triton.shared_frames import SharedFrames, explain_full_memory
from gateway.waiting import within
from streaming.triton.images import IMAGES_INPUT, pack_images
from streaming.triton.protocol import (
    CHUNK_LIMIT_S,
    FRAMES_OUTPUT,
    META_OUTPUT,
    PARAMS_INPUT,
    VIDEO_INPUT,
    ErrorKind,
    Meta,
    Op,
    decode_error,
)
from streaming.triton.sessions import NO_PICTURES

logger = logging.getLogger(__name__)

_CLOSE_S = 2.0
# In 2.51 the only sign of a dead model process: its model still reports READY.
_DEAD_PROCESS = re.compile(r"Stub process '([\w.-]+?)(?:_\d+)*' is not healthy")
# The server was restarted, or somebody else unloads models from it. The last is about a pipeline's engine.
_MODEL_LOST = re.compile(
    rf"{_DEAD_PROCESS.pattern}|Request for unknown model|has no available versions|Model '\S+' is not ready"
)
_UNKNOWN_TO_TRITON = "must specify the START flag"
_BROKEN = "The connection to Triton broke. Load the pipeline again."
_endings: set[asyncio.Task[None]] = set()  # the event loop itself would forget them


class _SequenceLost(ChunkFailed):
    """Triton or the model does not know the sequence."""


class TritonSession:
    """One sequence on a pipeline's model, over one long-lived gRPC stream.

    A request is never cancelled: Triton would forget the whole sequence if the request still waits, or keep
    the request for ever if its last response is just on its way. That a chunk is not wanted any more is a
    further request of the sequence, and a stream is read to its end.
    """

    def __init__(
        self,
        client: Any,
        model: str,
        on_dead: Callable[[str], None],
        shared: SharedFrames | None = None,
        *,
        keep_alive_s: float = 20.0,
        doubt_s: float = 2.0,
    ) -> None:
        """shared: memory in which pictures travel instead of in messages, or None.

        keep_alive_s: how often a sequence without a chunk says that it is still there. doubt_s: after so long
        without a response to a chunk the model is asked whether it still lives, which only a request shows.
        """
        self._client = client
        self._shared = shared
        self._model = model
        self._on_dead = on_dead
        self._keep_alive_s, self._doubt_s = keep_alive_s, doubt_s
        self._sequence_id = 0  # 0: the next chunk begins one
        self._stream: _Stream | None = None
        self._in_flight = False  # a chunk's last response is still to come
        self._outdated = False  # newer parameters than those of the chunk in the making wait
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._lora_scales: dict[str, float] = {}  # that the sequence was told

    async def generate(
        self, parameters: Mapping[str, Any], video: Images | None
    ) -> AsyncGenerator[Chunk, None]:
        """See ServingSession. Each part is yielded as soon as it arrives."""
        async with contextlib.aclosing(self._made(Op.GENERATE, parameters, video)) as parts:
            async for part in parts:
                yield part

    async def preprocess(self, name: str, video: Images) -> Images:
        """See ServingSession."""
        async with contextlib.aclosing(self._made(Op.PREPROCESS, {"preprocessor": name}, video)) as parts:
            found = [part.frames async for part in parts if len(part.frames)]
        if not found:
            raise ChunkFailed(f"Preprocessor '{name}' gave no pictures; the next try may work.")
        return np.concatenate(found)

    async def _made(
        self, op: Op, parameters: Mapping[str, Any], video: Images | None
    ) -> AsyncGenerator[Chunk, None]:
        """The answer of a sequence, which begins afresh if it is lost."""
        self._outdated = False
        told = {entry["path"]: entry["scale"] for entry in parameters.get("lora_scales", ())}
        try:
            async with contextlib.aclosing(self._chunk(op, parameters, video)) as parts:
                async for part in parts:
                    yield part
        except _SequenceLost as lost:
            self._forget_sequence(lost)
            scales = [{"path": path, "scale": scale} for path, scale in {**self._lora_scales, **told}.items()]
            again = {**parameters, "lora_scales": scales} if scales else parameters
            async with contextlib.aclosing(self._chunk(op, again, video)) as parts:
                async for part in parts:
                    yield part
        self._lora_scales |= told

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def sequence_id(self) -> int:
        """Triton's name for the stream; 0 when there is none yet."""
        return self._sequence_id

    def give_up(self) -> None:
        self._outdated = True
        if self._in_flight:
            self._tell(Op.GIVE_UP)

    async def probe(self) -> None:
        """Ask the model's process for nothing: a dead one is told to `on_dead`. In place of a stream."""
        with contextlib.suppress(ServingError):  # any other answer is one of a living process
            await self._run(Op.PROBE)

    async def warm_up(self) -> None:
        """Let the model run everything once. In place of a stream. Raises ChunkFailed, ServingLost."""
        await self._run(Op.WARMUP)

    async def adapt(self, adapters: Sequence[Mapping[str, Any]]) -> None:
        """Let the model go on with these LoRA files beside its weights, as `PlannedAdapter` has them.

        In place of a stream. Raises ChunkFailed, after which those of before are there, and ServingLost.
        """
        await self._run(Op.ADAPT, {"adapters": list(adapters)})

    async def _run(self, op: Op, parameters: Mapping[str, Any] | None = None) -> None:
        """A command that is a sequence of its own."""
        payload = _inputs(op, parameters)
        async with contextlib.aclosing(self._request(payload, start=True, end=True)) as parts:
            async for _ in parts:
                pass

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.wait({_behind_us(self._end())}, timeout=_CLOSE_S)

    async def _end(self) -> None:
        """End the sequence and read the stream to its end; a chunk in the making ends at its next step."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._stream is not None:
            if self._sequence_id:
                self._tell(Op.STOP, end=True)
            await self._stream.finish()
        if self._shared is not None:
            await self._shared.close()

    async def _chunk(
        self, op: Op, parameters: Mapping[str, Any], video: Images | None
    ) -> AsyncGenerator[Chunk, None]:
        while self._in_flight:  # a former chunk that was not read to its end
            await self._receive(to_video=False)
        self._take_strays()
        payload = await self._payload(op, parameters, video)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_alive(), name="triton-keep-alive")
        if self._outdated:  # before it was sent
            yield Chunk(NO_PICTURES, Meta(last=True, given_up=True))
            return
        request = self._request(payload, start=not self._sequence_id, to_video=video is not None)
        async with contextlib.aclosing(request) as parts:
            async for part in parts:
                yield part

    async def _request(
        self, payload: Mapping[str, Any], *, start: bool, end: bool = False, to_video: bool = False
    ) -> AsyncGenerator[Chunk, None]:
        """Send a request and yield its responses until the final one. Raises ChunkFailed, ServingLost."""
        if start:
            self._sequence_id = secrets.randbelow(2**63 - 1) + 1
        if self._stream is None:
            self._stream = _Stream(self._client)
        self._send(payload, start=start, end=end)
        self._in_flight = True
        while self._in_flight:
            yield await self._receive(to_video=to_video)

    def _send(self, payload: Mapping[str, Any], *, start: bool = False, end: bool = False) -> None:
        assert self._stream is not None
        self._stream.send(
            {
                "model_name": self._model,
                **payload,
                "sequence_id": self._sequence_id,
                "sequence_start": start,
                "sequence_end": end,
            }
        )
        if end:
            self._sequence_id = 0

    def _tell(self, op: Op, *, end: bool = False) -> None:
        """Send a command for which nobody waits: only its failure is answered."""
        self._send(_inputs(op), end=end)

    async def _keep_alive(self) -> None:
        """Keep the sequence while nothing is made, and find out whether a silent chunk is made at all."""
        while True:
            await asyncio.sleep(self._doubt_s)
            if not self._in_flight:
                with contextlib.suppress(ServingLost):  # all streams are told
                    self._take_strays()
            if self._stream is None or not self._sequence_id:
                continue
            silent_s = time.monotonic() - self._stream.last_used
            if silent_s >= (self._doubt_s if self._in_flight else self._keep_alive_s):
                self._tell(Op.KEEP_ALIVE)

    async def _payload(self, op: Op, parameters: Mapping[str, Any], video: Images | None) -> dict[str, Any]:
        """`inputs` and `outputs` of a chunk's request. Raises ServingLost."""
        plain, images = pack_images(parameters)
        payload = _inputs(op, plain)
        if images is not None:
            pixels = InferInput(IMAGES_INPUT, list(images.shape), "UINT8")
            pixels.set_data_from_numpy(images)
            payload["inputs"].append(pixels)
        if video is None:
            return payload
        frames = InferInput(VIDEO_INPUT, list(video.shape), "UINT8")
        payload["inputs"].append(frames)
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
            return payload
        frames.set_shared_memory(self._shared.region, video.nbytes)
        if self._shared.both_ways:
            size = self._shared.bytes_each
            output = InferRequestedOutput(FRAMES_OUTPUT)
            output.set_shared_memory(self._shared.region, size, offset=size)
            payload["outputs"] = [output, InferRequestedOutput(META_OUTPUT)]
        return payload

    async def _receive(self, *, to_video: bool) -> Chunk:
        """The next response to the request in flight. Raises ChunkFailed, ServingLost."""
        assert self._stream is not None
        try:
            result, error = await self._stream.receive()
        except ServingLost as lost:
            self._in_flight = False
            self._on_dead(str(lost))
            raise
        if error is not None:
            self._in_flight = False  # an error response is final, the stream stays usable
            raise self._judged(error)
        response = result.get_response()
        self._in_flight = not response.parameters["triton_final_response"].bool_param
        if self._shared is not None and self._shared.both_ways and to_video:
            frames = self._shared.get(list(result.get_output(FRAMES_OUTPUT).shape))
        else:
            frames = result.as_numpy(FRAMES_OUTPUT)
        meta = result.as_numpy(META_OUTPUT)
        return Chunk(
            NO_PICTURES if frames is None else frames,
            Meta() if meta is None else json.loads(meta.reshape(-1)[0]),
        )

    def _judged(self, error: InferenceServerException) -> ServingError:
        """What an error means; a model that is gone is made known."""
        text, kind = decode_error(user_text(error))
        if _MODEL_LOST.search(text):
            self._on_dead(text)
            died = "The model process of the pipeline died." if dead_models(text) else f"Triton: {text}."
            return ServingLost(f"{died} Load the pipeline again.")
        if kind is ErrorKind.UNKNOWN_SEQUENCE or _UNKNOWN_TO_TRITON in text:
            return _SequenceLost(text)
        return ChunkFailed(text, fatal=kind is ErrorKind.FATAL)

    def _take_strays(self) -> None:
        """Look at what came while no chunk was in flight: errors of commands. Raises ServingLost."""
        while self._stream is not None:
            try:
                error = self._stream.stray()
            except ServingLost as lost:
                self._on_dead(str(lost))
                raise
            if error is None:
                return
            judged = self._judged(error)
            if isinstance(judged, _SequenceLost):
                self._forget_sequence(judged)
            elif isinstance(judged, ServingLost):
                raise judged

    def _forget_sequence(self, lost: _SequenceLost) -> None:
        """The next chunk begins a sequence, on a stream where no answer to the former one can come."""
        logger.info("The sequence is lost and begins afresh: %s", lost)
        self._sequence_id = 0
        if self._stream is not None:
            _behind_us(self._stream.finish())
            self._stream = None


class _Stream:
    """One bidirectional gRPC stream, read by a task of its own until it ends.

    grpc reports a closed channel as a cancellation; here only the reading task sees it, and the session's own
    task is not taken for cancelled.
    """

    def __init__(self, client: InferenceServerClient) -> None:
        """Raises ServingLost when the connection is closed."""
        self._requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._items: asyncio.Queue[tuple[Any, Any] | None] = asyncio.Queue()
        self.last_used = time.monotonic()  # when something was sent or came
        try:
            call = client.stream_infer(self._drain())
        except grpc.aio.UsageError as closed:
            raise ServingLost(_BROKEN) from closed
        self._reader = asyncio.create_task(self._read(call), name="triton-stream")

    def send(self, request: dict[str, Any]) -> None:
        self.last_used = time.monotonic()
        self._requests.put_nowait(request)

    async def receive(self) -> tuple[Any, Any]:
        """(result, error) of the next response; one of them is None. Raises ServingLost."""
        try:
            item = await within(self._items.get(), CHUNK_LIMIT_S)
        except asyncio.TimeoutError as timeout:
            raise ServingLost(f"No answer from Triton within {CHUNK_LIMIT_S:.0f} s.") from timeout
        if item is None:
            self._items.put_nowait(None)  # whoever asks next is told the same
            raise ServingLost(_BROKEN)
        return item

    def stray(self) -> InferenceServerException | None:
        """An error that came while nobody waited, if there is one. Raises ServingLost."""
        while not self._items.empty():
            item = self._items.get_nowait()
            if item is None:
                self._items.put_nowait(None)
                raise ServingLost(_BROKEN)
            if item[1] is not None:
                error: InferenceServerException = item[1]
                return error
        return None

    async def finish(self) -> None:
        """Close the stream from our side and wait until it is read to its end."""
        self._requests.put_nowait(None)
        await asyncio.wait({self._reader})

    async def _read(self, call: AsyncIterator[tuple[Any, Any]]) -> None:
        try:
            async for item in call:
                self.last_used = time.monotonic()
                self._items.put_nowait(item)
        except (grpc.RpcError, InferenceServerException, asyncio.CancelledError) as error:
            logger.debug("A stream to Triton ended: %r", error)
        finally:
            self._items.put_nowait(None)

    async def _drain(self) -> AsyncIterator[dict[str, Any]]:
        while (request := await self._requests.get()) is not None:
            yield request


def _behind_us(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Let work go on that nobody waits for."""
    task = asyncio.create_task(work, name="triton-session-end")
    _endings.add(task)
    task.add_done_callback(_endings.discard)
    return task


def _inputs(op: Op, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`inputs` of a request."""
    command = InferInput(PARAMS_INPUT, [1], "BYTES")
    document = json.dumps({"op": op.value, "parameters": dict(parameters or {})}).encode()
    command.set_data_from_numpy(np.array([document], dtype=np.object_))
    return {"inputs": [command]}


def dead_models(text: str) -> set[str]:
    """Names of the models whose process an error of Triton's calls dead."""
    return set(_DEAD_PROCESS.findall(text))


def user_text(error: InferenceServerException) -> str:
    """The sentence a model raised, without Triton's and Python's wrapping."""
    text = str(error.message() or error)
    match = re.search(r"(?:Internal: |message: )(.*?)(?=\n\nAt:|;?\n*$)", text, re.DOTALL)
    if match:
        text = re.sub(r"^\w*(?:Error|Exception): ", "", match.group(1))
    return explain_full_memory(text.strip())
