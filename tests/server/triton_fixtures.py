"""Real Triton servers for the tests, and a small client that speaks the chunk protocol."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as triton_grpc

from gateway.embedded.leftovers import SHARED_MEMORY
from gateway.embedded.server import EmbeddedTriton, model_repository
from streaming.triton.model_config import MODEL_SOURCE, pipeline_config
from streaming.triton.protocol import FRAMES_OUTPUT, META_OUTPUT, PARAMS_INPUT, VIDEO_INPUT, Meta
from streaming.triton.sessions import Images

SCRIPTED = "scripted"
PASSTHROUGH = "passthrough"
DOUBLER = "doubler"

_SCRIPTED_MODEL = """
from tests.server.scripted_pipeline import ScriptedPipeline
from streaming.triton.triton_model import StreamingModel

class TritonPythonModel(StreamingModel):
    pipeline = ScriptedPipeline
"""

_DOUBLER_CONFIG = """
name: "doubler" backend: "python" max_batch_size: 0
input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""

_DOUBLER_MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        doubled = [pb_utils.get_input_tensor_by_name(r, "IN").as_numpy() * 2 for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", d)]) for d in doubled]
"""


@contextlib.asynccontextmanager
async def running_triton(*repositories: Path, **options: Any) -> AsyncIterator[EmbeddedTriton]:
    """An embedded server on the product's models and those in `repositories`; gone afterwards."""
    triton = EmbeddedTriton([model_repository(), *repositories], **options)
    await triton.start()
    try:
        yield triton
    finally:
        await triton.stop(timeout_s=2)


def write_test_models(repository: Path) -> Path:
    """Write models `scripted` (a pipeline) and `doubler` (a plain model) into `repository`."""
    write_pipeline(repository, SCRIPTED, _SCRIPTED_MODEL)
    _write_model(repository, DOUBLER, _DOUBLER_CONFIG, _DOUBLER_MODEL)
    return repository


def write_pipeline(repository: Path, name: str, source: str) -> None:
    """Write a pipeline's model into `repository`. source: of its `model.py`."""
    _write_model(repository, name, (model_repository() / PASSTHROUGH / "config.pbtxt").read_text(), source)


def _write_model(repository: Path, name: str, config: str, source: str) -> None:
    model = repository / name / MODEL_SOURCE
    model.parent.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    model.write_text(source)


def override(name: str, parameters: Mapping[str, str], idle_s: float | None = None) -> str:
    """A whole configuration as JSON, as a load request needs it."""
    config = pipeline_config(name, parameters)
    if idle_s is not None:
        config["sequence_batching"]["max_sequence_idle_microseconds"] = int(idle_s * 1e6)
    return json.dumps(config)


@dataclass(frozen=True, slots=True)
class Response:
    """One response. frames: uint8 [T, H, W, 3]. final: carries Triton's FINAL flag."""

    frames: Images
    meta: Meta
    final: bool


class ModelClient:
    """Requests to one model.

    Errors of the model are tritonclient's InferenceServerException, those of a connection AioRpcError.
    """

    def __init__(self, triton: EmbeddedTriton, model: str) -> None:
        self.api = triton_grpc.InferenceServerClient(triton.grpc_url)
        self.model = model
        self._in_force: dict[int, dict[str, Any]] = {}  # parameters by sequence

    async def __aenter__(self) -> "ModelClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.api.close()

    async def load(self, parameters: Mapping[str, str] | None = None, idle_s: float | None = None) -> None:
        """Load the model with these parameters; nothing happens when it is loaded with the same already."""
        await self.api.load_model(self.model, config=override(self.model, parameters or {}, idle_s))

    async def unload(self) -> None:
        if await self.state() in ("READY", "UNLOADING"):
            await self.api.unload_model(self.model)
            for _ in range(500):
                if await self.state() != "UNLOADING":
                    return
                await asyncio.sleep(0.02)
            raise AssertionError(
                f"Triton does not finish unloading {self.model}: a request was never released"
            )

    async def state(self) -> str:
        index = await self.api.get_model_repository_index()
        return str(next(m.state for m in index.models if m.name == self.model))

    async def send(
        self, sequence: int, command: Mapping[str, Any] | bytes, video: Images | None = None, flags: str = ""
    ) -> list[Response]:
        """All responses to one request. flags: letters `s` (START) and `e` (END)."""
        return [response async for response in self.stream(sequence, command, video, flags)]

    async def start(self, sequence: int, **parameters: Any) -> None:
        """Begin a sequence without a chunk. parameters: of all its chunks."""
        self._in_force[sequence] = parameters
        await self.send(sequence, {"op": "keep_alive"}, flags="s")

    async def generate(self, sequence: int, video: Images | None = None, **changes: Any) -> list[Response]:
        """A chunk. changes: parameters that this one is given beside, or instead of, those of the start."""
        return await self.send(sequence, self.command(sequence, **changes), video)

    def command(self, sequence: int, **changes: Any) -> dict[str, Any]:
        """What `generate` sends."""
        return {"op": "generate", "parameters": {**self._in_force.get(sequence, {}), **changes}}

    async def stream(
        self, sequence: int, command: Mapping[str, Any] | bytes, video: Images | None = None, flags: str = ""
    ) -> AsyncIterator[Response]:
        """The responses as they arrive. Leaving the loop before the final one cancels the request.

        A request must not be cancelled once its last response is there: Triton 2.51 then never releases it,
        and the model can never be unloaded. So the call is read to its end before that response is given out.
        """
        text = command if isinstance(command, bytes) else json.dumps(command).encode()
        inputs = [_input(PARAMS_INPUT, "BYTES", np.array([text], dtype=np.object_))]
        if video is not None:
            inputs.append(_input(VIDEO_INPUT, "UINT8", video))
        request = {
            "model_name": self.model,
            "inputs": inputs,
            "sequence_id": sequence,
            "sequence_start": "s" in flags,
            "sequence_end": "e" in flags,
        }

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield request

        iterator = self.api.stream_infer(requests())
        over = False
        try:
            async for result, error in iterator:
                response = None if error else _response(result)
                if response is None or response.final:
                    over = True
                    async for _ in iterator:
                        pass
                if response is None:
                    raise error
                yield response
        finally:
            if not over:
                iterator.cancel()


def _response(result: triton_grpc.InferResult) -> Response:
    return Response(
        frames=result.as_numpy(FRAMES_OUTPUT),
        meta=json.loads(result.as_numpy(META_OUTPUT)[0]),
        final=result.get_response().parameters["triton_final_response"].bool_param,
    )


def _input(name: str, datatype: str, values: np.ndarray[Any, Any]) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


async def wait_for_log(caplog: pytest.LogCaptureFixture, *parts: str) -> str:
    """The first line of Triton's log that has all `parts`; fails when none comes within seconds."""
    for _ in range(500):
        for record in caplog.records:
            if record.name == "triton" and all(part in record.getMessage() for part in parts):
                return record.getMessage()
        await asyncio.sleep(0.01)
    raise AssertionError(f"Triton did not log {parts}, but:\n{caplog.text}")


def model_processes(server_pid: int) -> list[psutil.Process]:
    """The processes of the Python models of a server."""
    return psutil.Process(server_pid).children(recursive=True)


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that run; one that is dead and only waits to be reaped does not."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def own_shared_memory(pid: int | None = None) -> list[Path]:
    """Regions of all servers that process `pid` (None: this one) started."""
    return list(SHARED_MEMORY.glob(f"wanstream_*_{pid or os.getpid()}_*"))
