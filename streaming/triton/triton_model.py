"""A pipeline as a Triton model: Triton's requests <-> the pipeline's streams.

It imports Triton's Python package, so it can be imported in a model process of Triton only.
"""

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import triton_python_backend_utils as pb_utils

from streaming.errors import FatalStreamError, UnknownSequenceError, WanstreamError
from streaming.triton.images import IMAGES_INPUT, unpack_images
from streaming.triton.preprocessing import Preprocessing
from streaming.triton.protocol import (
    FRAMES_OUTPUT,
    META_OUTPUT,
    PARAMS_INPUT,
    VIDEO_INPUT,
    ErrorKind,
    Meta,
    Op,
    encode_error,
)
from streaming.triton.sessions import (
    NO_PICTURES,
    ChunkCancelled,
    Images,
    LoadContext,
    ParsedCommand,
    Pipeline,
    SessionTable,
    StreamSession,
    parse_command,
)
from streaming.triton.turns import Turn, Turns

_START, _END = 1, 2  # Triton's sequence flags
_POLL_S = 0.05
_UNLOAD_S = 30.0  # 1.2 s is typical; Triton may never end an unload
_GIVEN_UP = Meta(last=True, given_up=True)


class StreamingModel:
    """Base of every pipeline's `TritonPythonModel`; a subclass names its pipeline and little else.

    instant: whether a chunk is made at once, in Triton's thread: it takes less than to wake another one.
    """

    pipeline: Callable[[LoadContext], Pipeline]
    instant: ClassVar[bool] = False

    def initialize(self, args: dict[str, str]) -> None:
        """Called by Triton once per load; what it raises is the answer to the load request."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        context = LoadContext(parameters, TritonModels(), Path(args["model_repository"]))
        self._pipeline = type(self).pipeline(context)
        idle_us = int(config["sequence_batching"]["max_sequence_idle_microseconds"])
        self._sessions = SessionTable(idle_us / 1e6)
        self._turns = Turns()
        self._preprocessing = Preprocessing(parameters)

    def finalize(self) -> None:
        """Called by Triton once, when the model is unloaded."""
        self._turns.close()
        self._pipeline.close()

    def execute(self, requests: list[Any]) -> None:
        """Called by Triton with the requests that wait; returns at once and leaves chunks to the turns.

        Triton then hands over the next request of a sequence although its chunk is still being made. (It need
        not: a Triton that waits for the chunk's end lets a chunk run that nobody wants, and nothing else.)
        """
        for request in requests:
            reply = _Reply(request.get_response_sender())
            reply.guard(partial(self._accept, request, reply))

    def _accept(self, request: Any, reply: "_Reply") -> None:
        sequence_id, flags = int(request.correlation_id()), int(request.flags())
        try:
            command = _command(request)
            if command.op is Op.WARMUP:
                self._turns.put(
                    Turn(None, lambda turn: reply.guard(partial(self._warm_up, reply)), reply.end)
                )
            elif command.op is Op.ADAPT:
                adapt = partial(self._adapt, command.parameters, reply)
                self._turns.put(Turn(None, lambda turn: reply.guard(adapt), reply.end))
            elif command.op is Op.PROBE:
                reply.end(Meta(last=True))
            else:
                self._obey(command, self._session(sequence_id, started=bool(flags & _START)), request, reply)
        finally:
            if flags & _END:
                self._sessions.end(sequence_id)
            for expired in self._sessions.expire(self._turns.busy):
                pb_utils.Logger.log_info(f"Session {expired} was silent for too long and is forgotten")

    def _session(self, sequence_id: int, *, started: bool) -> StreamSession:
        """The session of a request, which may be its first. Raises UnknownSequenceError."""
        if not started:
            return self._sessions.get(sequence_id)
        former = self._sessions.find(sequence_id)
        if former is not None:
            self._turns.abandon(former)
        return self._sessions.start(sequence_id, self._pipeline.open_stream)

    def _obey(self, command: ParsedCommand, session: StreamSession, request: Any, reply: "_Reply") -> None:
        if command.op is Op.GENERATE:
            parameters = unpack_images(command.parameters, _input(request, IMAGES_INPUT))
            video = _input(request, VIDEO_INPUT) if self.instant else _video(request)
            make = partial(self._make_chunk, session, parameters, video, reply)
            turn = Turn(session, lambda turn: reply.guard(partial(make, turn)), partial(reply.end, _GIVEN_UP))
            if self.instant:
                turn.serve(turn)
            else:
                self._turns.put(turn)
        elif command.op is Op.PREPROCESS:
            work = partial(self._preprocess, session, command.parameters, _video(request), reply)
            self._turns.put(Turn(session, lambda turn: reply.guard(work), partial(reply.end, _GIVEN_UP)))
        elif command.op is Op.GIVE_UP:
            self._turns.give_up(session)
            reply.end()
        elif command.op is Op.STOP:
            self._turns.abandon(session)
            self._sessions.end(int(request.correlation_id()))
            reply.end(Meta(last=True))
        else:
            reply.end()

    def _make_chunk(
        self,
        session: StreamSession,
        parameters: Mapping[str, Any],
        video: Images | None,
        reply: "_Reply",
        turn: Turn,
    ) -> None:
        try:
            made = session.generate(parameters, video, lambda: turn.unwanted or reply.is_cancelled())
            with contextlib.closing(made) as groups:
                for frames, meta in groups:
                    turn.has_pictures = turn.has_pictures or len(frames) > 0
                    reply.send(frames, meta)
        except ChunkCancelled:
            reply.end(_GIVEN_UP)
        finally:
            self._sessions.touch(session)

    def _preprocess(
        self, session: StreamSession, parameters: Mapping[str, Any], video: Images | None, reply: "_Reply"
    ) -> None:
        try:
            reply.send(self._preprocessing.run(str(parameters.get("preprocessor")), video), Meta(last=True))
        finally:
            self._sessions.touch(session)

    def _warm_up(self, reply: "_Reply") -> None:
        began = time.perf_counter()
        self._pipeline.warm_up()
        reply.end(Meta(timings_ms={"warmup": (time.perf_counter() - began) * 1e3}, last=True))

    def _adapt(self, parameters: Mapping[str, Any], reply: "_Reply") -> None:
        self._pipeline.adapt(parameters)
        reply.end(Meta(last=True))


class _Reply:
    """The responses to one request. Whatever happens, the last one has Triton's FINAL flag.

    The request itself is let go: its input would stay in shared memory while it waits for its turn.
    """

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._finished = False

    def guard(self, work: Callable[[], None]) -> None:
        """Do `work`; what it raises is the answer."""
        try:
            work()
        except Exception as error:  # process boundary: the client sees only what is sent
            text = _error_text(error)
            if not isinstance(error, WanstreamError):
                pb_utils.Logger.log_error(traceback.format_exc())
            self._finish(pb_utils.InferenceResponse(error=pb_utils.TritonError(text)))

    def is_cancelled(self) -> bool:
        """Whether the connection of whoever asked is gone; a gateway that lives cancels nothing."""
        return bool(self._sender.is_cancelled())

    def send(self, frames: Images, meta: Meta) -> None:
        """Send one response; `meta["last"]` makes it the final one. frames: uint8 [T, H, W, 3]."""
        tensors = [
            pb_utils.Tensor(FRAMES_OUTPUT, np.ascontiguousarray(frames)),
            pb_utils.Tensor(META_OUTPUT, np.array([json.dumps(meta).encode()], dtype=np.object_)),
        ]
        response = pb_utils.InferenceResponse(tensors)
        if meta.get("last"):
            self._finish(response)
        else:
            self._sender.send(response)

    def end(self, meta: Meta | None = None) -> None:
        """Send a last response without pictures; None: no response at all, only the end."""
        if meta is not None:
            self.send(NO_PICTURES, meta)
        elif not self._finished:
            self._finished = True
            self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _finish(self, response: Any) -> None:
        if not self._finished:
            self._finished = True
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class TritonModels:
    """Other models on the same server, called through Triton (BLS)."""

    def __init__(self, unload_s: float = _UNLOAD_S) -> None:
        """unload_s: how long a model may take to go."""
        self._unload_s = unload_s

    def is_ready(self, name: str) -> bool:
        return bool(pb_utils.is_model_ready(model_name=name))

    def run(self, name: str, inputs: Mapping[str, Any], outputs: list[str]) -> dict[str, Any]:
        tensors = [_tensor(key, value) for key, value in inputs.items()]
        request = pb_utils.InferenceRequest(
            model_name=name,
            requested_output_names=outputs,
            inputs=tensors,
            **_preferred_memory(tensors),
        )
        response = request.exec()
        if response.has_error():
            raise WanstreamError(f"Model '{name}' failed: {response.error().message()}")
        # By name: the order is the callee's, not that of the request.
        return {key: pb_utils.get_output_tensor_by_name(response, key) for key in outputs}

    def load(self, name: str, config: str | None = None) -> None:
        try:
            pb_utils.load_model(model_name=name, config=config or "")
        except pb_utils.TritonModelException as error:
            raise WanstreamError(f"Model '{name}' cannot be loaded: {error}") from error

    def unload(self, name: str) -> None:
        if not self.is_ready(name):
            return
        try:
            pb_utils.unload_model(model_name=name)
        except pb_utils.TritonModelException as error:
            raise WanstreamError(f"Model '{name}' cannot be unloaded: {error}") from error
        deadline = time.monotonic() + self._unload_s
        while self.is_ready(name):
            if time.monotonic() > deadline:
                raise WanstreamError(
                    f"Model '{name}' is still there {self._unload_s:g} s after its unloading."
                )
            time.sleep(_POLL_S)


def _tensor(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return pb_utils.Tensor(name, np.ascontiguousarray(value))
    return pb_utils.Tensor.from_dlpack(name, value)


def _preferred_memory(inputs: list[Any]) -> dict[str, Any]:
    """Outputs are wanted where the inputs are; Triton's own choice is the CPU."""
    if all(tensor.is_cpu() for tensor in inputs):
        return {}
    return {"preferred_memory": pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_GPU, 0)}


def _command(request: Any) -> ParsedCommand:
    tensor = pb_utils.get_input_tensor_by_name(request, PARAMS_INPUT)
    return parse_command(tensor.as_numpy().reshape(-1)[0])


def _video(request: Any) -> Images | None:
    """A copy: what waits for its turn must not take up Triton's shared memory."""
    video = _input(request, VIDEO_INPUT)
    return None if video is None else video.copy()


def _input(request: Any, name: str) -> Images | None:
    """An input as it lies in Triton's memory, while the request lives; None when it has none of the name."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _kind(error: WanstreamError) -> ErrorKind:
    if isinstance(error, UnknownSequenceError):
        return ErrorKind.UNKNOWN_SEQUENCE
    return ErrorKind.FATAL if isinstance(error, FatalStreamError) else ErrorKind.CHUNK


def _error_text(error: Exception) -> str:
    """What the user reads."""
    out_of_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    if out_of_memory:
        return encode_error(
            "The pipeline ran out of memory. Load it with a smaller size or run fewer sessions at once.",
            ErrorKind.FATAL,
        )
    if isinstance(error, WanstreamError):
        return encode_error(str(error), _kind(error))
    first_line = str(error).strip().partition("\n")[0]
    reason = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    return f"The pipeline failed on this chunk ({reason}). The next one may work; Triton's log tells where."
