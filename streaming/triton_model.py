"""A pipeline as a Triton model: Triton's requests <-> the pipeline's streams.

The only module that imports Triton's Python package, so it can be imported in a model process of Triton only.
"""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from streaming.errors import FatalStreamError, WanstreamError
from streaming.protocol import (
    FRAMES_OUTPUT,
    META_OUTPUT,
    PARAMS_INPUT,
    VIDEO_INPUT,
    Meta,
    Op,
    encode_error,
)
from streaming.sessions import (
    ChunkCancelled,
    Images,
    LoadContext,
    ParsedCommand,
    Pipeline,
    SessionTable,
    parse_command,
)

_START, _END = 1, 2  # Triton's sequence flags
_NO_FRAMES = np.zeros((0, 1, 1, 3), np.uint8)
_POLL_S = 0.05


class StreamingModel:
    """Base of every pipeline's `TritonPythonModel`; a subclass names its pipeline and nothing else."""

    pipeline: Callable[[LoadContext], Pipeline]

    def initialize(self, args: dict[str, str]) -> None:
        """Called by Triton once per load; what it raises is the answer to the load request."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        context = LoadContext(parameters, TritonModels(), Path(args["model_repository"]))
        self._pipeline = type(self).pipeline(context)
        idle_us = int(config["sequence_batching"]["max_sequence_idle_microseconds"])
        self._sessions = SessionTable(idle_us / 1e6)

    def finalize(self) -> None:
        """Called by Triton once, when the model is unloaded."""
        self._pipeline.close()

    def execute(self, requests: list[Any]) -> None:
        """Called by Triton with the requests that wait; each is answered to its end before the next."""
        for request in requests:
            _Reply(request).answer(self._handle)

    def _handle(self, request: Any, reply: "_Reply") -> None:
        sequence_id, flags = int(request.correlation_id()), int(request.flags())
        try:
            command = _command(request)
            if flags & _START and command.op not in (Op.WARMUP, Op.PROBE):
                self._sessions.start(sequence_id, self._pipeline.open_stream(), command.parameters)
            self._run(command, sequence_id, request, reply, started=bool(flags & _START))
        finally:
            if flags & _END:
                self._sessions.end(sequence_id)
            for expired in self._sessions.expire():
                pb_utils.Logger.log_info(f"Session {expired} was silent for too long and is forgotten")

    def _run(
        self, command: ParsedCommand, sequence_id: int, request: Any, reply: "_Reply", *, started: bool
    ) -> None:
        if command.op is Op.WARMUP:
            began = time.perf_counter()
            self._pipeline.warm_up()
            reply.send(
                _NO_FRAMES, Meta(timings_ms={"warmup": (time.perf_counter() - began) * 1e3}, last=True)
            )
        elif command.op is Op.GENERATE:
            session = self._sessions.get(sequence_id)
            changes = {} if started else command.parameters
            for frames, meta in session.generate(changes, _video(request), request.is_cancelled):
                reply.send(frames, meta)
        else:
            if command.op is Op.STOP:
                self._sessions.end(sequence_id)
            elif command.op is not Op.PROBE:
                self._sessions.get(sequence_id)  # START and KEEP_ALIVE: mark it as used
            reply.send(_NO_FRAMES, Meta(last=True))


class _Reply:
    """The responses to one request. Whatever happens, the last one has Triton's FINAL flag."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._sender = request.get_response_sender()
        self._finished = False

    def answer(self, handle: Callable[[Any, "_Reply"], None]) -> None:
        try:
            handle(self._request, self)
        except ChunkCancelled:
            self.send(_NO_FRAMES, Meta(last=True))  # nobody listens, but Triton waits for the end
        except Exception as error:  # process boundary: the client sees only what is sent
            text = _error_text(error)
            if not isinstance(error, WanstreamError):
                pb_utils.Logger.log_error(traceback.format_exc())
            self._finish(pb_utils.InferenceResponse(error=pb_utils.TritonError(text)))

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

    def _finish(self, response: Any) -> None:
        if not self._finished:
            self._finished = True
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class TritonModels:
    """Other models on the same server, called through Triton (BLS)."""

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

    def load(self, name: str) -> None:
        try:
            pb_utils.load_model(model_name=name)
        except pb_utils.TritonModelException as error:
            raise WanstreamError(f"Model '{name}' cannot be loaded: {error}") from error

    def unload(self, name: str) -> None:
        if self.is_ready(name):
            pb_utils.unload_model(model_name=name)
            while self.is_ready(name):
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
    tensor = pb_utils.get_input_tensor_by_name(request, VIDEO_INPUT)
    return None if tensor is None else tensor.as_numpy()


def _error_text(error: Exception) -> str:
    """What the user reads."""
    out_of_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    if out_of_memory:
        return encode_error(
            "The pipeline ran out of memory. Load it with a smaller size or run fewer sessions at once.",
            fatal=True,
        )
    if isinstance(error, WanstreamError):
        return encode_error(str(error), fatal=isinstance(error, FatalStreamError))
    first_line = str(error).strip().partition("\n")[0]
    reason = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    return f"The pipeline failed on this chunk ({reason}). The next one may work; Triton's log tells where."
