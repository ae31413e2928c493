"""Engines called through Triton (BLS) with GPU tensors: are they right, and what do the copies cost?

    python -m benchmarks.gpu.triton_copies

Two Python models on the embedded Triton: `engine` adds one to each input on the GPU and returns it, `caller`
calls it as a pipeline's model does, with as many bytes as LongLive's caches have, and times that against the
same sum in its own process. What Triton's pool of GPU memory (64 MB here) cannot hold is allocated per call.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

from benchmarks.gpu.common import Result, need_device
from benchmarks.results import add_out_option
from gateway.embedded.server import EmbeddedTriton

TENSORS = 30  # keys and values of so many layers
MEGABYTES = (16, 256, 1500)  # in all; the last is LongLive at 576x320 with 12 latent frames, in 16 bits
TINY_MEGABYTES = (1,)

ENGINE = """
import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack, to_dlpack

class TritonPythonModel:
    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        given = [pb_utils.get_input_tensor_by_name(request, f"IN{i}") for i in range(COUNT)]
        values = [from_dlpack(tensor.to_dlpack()) for tensor in given]
        wanted = set(request.requested_output_names())
        outputs = [(f"OUT{i}", v + 1) for i, v in enumerate(values) if f"OUT{i}" in wanted]
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor.from_dlpack(name, to_dlpack(v)) for name, v in outputs])
"""

CALLER = """
import json, statistics, time
import numpy as np, torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack, to_dlpack

class TritonPythonModel:
    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        ask = json.loads(pb_utils.get_input_tensor_by_name(request, "ASK").as_numpy()[0])
        device = torch.device(ask["device"])
        each = ask["bytes"] // 2 // COUNT
        values = [torch.randn(each, device=device).half() for _ in range(COUNT)]
        self.served(values, device)
        found = self.served(values, device)
        right = all(torch.equal(a, b + 1) for a, b in zip(found, values))
        on_device = all(a.device.type == device.type for a in found)
        result = {"right": right, "on_device": on_device}
        for name, call in (("all_outputs", lambda: self.served(values, device)),
                           ("one_output", lambda: self.served(values, device, 1)),
                           ("here", lambda: [v + 1 for v in values])):
            times = []
            for _ in range(ask["repeats"]):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                began = time.perf_counter()
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(1000 * (time.perf_counter() - began))
            result[name + "_ms"] = statistics.median(times)
        text = np.array([json.dumps(result).encode()], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("ANSWER", text)])

    def served(self, values, device, outputs=COUNT):
        kind = pb_utils.TRITONSERVER_MEMORY_GPU if device.type == "cuda" else pb_utils.TRITONSERVER_MEMORY_CPU
        names = [f"OUT{i}" for i in range(outputs)]
        request = pb_utils.InferenceRequest(
            model_name="engine", requested_output_names=names,
            inputs=[pb_utils.Tensor.from_dlpack(f"IN{i}", to_dlpack(v)) for i, v in enumerate(values)],
            preferred_memory=pb_utils.PreferredMemory(kind, 0))
        response = request.exec()
        if response.has_error():
            raise RuntimeError(response.error().message())
        found = [pb_utils.get_output_tensor_by_name(response, name) for name in names]
        return [from_dlpack(tensor.to_dlpack()) for tensor in found]
"""


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--tiny", action="store_true", help="few bytes, to try the script")
    add_out_option(parser)
    options = parser.parse_args()
    need_device(options.device)
    result = Result("triton-copies", options, precision="float16")
    with tempfile.TemporaryDirectory(prefix="wanstream-benchmark-") as directory:
        repository = Path(directory)
        write_models(repository, options.device)
        asyncio.run(measure(repository, options, result))
    result.finish()


def write_models(repository: Path, device: str) -> None:
    """The two models as Triton wants them."""
    kind = "KIND_GPU" if device.startswith("cuda") else "KIND_CPU"
    tensors = ", ".join(f'{{ name: "NAME{i}" data_type: TYPE_FP16 dims: [ -1 ] }}' for i in range(TENSORS))
    parts = {
        "engine": (ENGINE, tensors.replace("NAME", "IN"), tensors.replace("NAME", "OUT")),
        "caller": (
            CALLER,
            '{ name: "ASK" data_type: TYPE_STRING dims: [ 1 ] }',
            '{ name: "ANSWER" data_type: TYPE_STRING dims: [ 1 ] }',
        ),
    }
    for name, (source, inputs, outputs) in parts.items():
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(source.replace("COUNT", str(TENSORS)))
        (repository / name / "config.pbtxt").write_text(
            f'name: "{name}" backend: "python" max_batch_size: 0 '
            f"input [ {inputs} ] output [ {outputs} ] "
            f"instance_group [ {{ kind: {kind} count: 1 }} ] "
            'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value: { string_value: "no" } }'
        )


async def measure(repository: Path, options: argparse.Namespace, result: Result) -> None:
    """A row for each number of bytes."""
    triton = EmbeddedTriton([repository])
    await triton.start()
    try:
        await asyncio.to_thread(ask_all, triton.grpc_url, options, result)
    finally:
        await triton.stop(timeout_s=5)


def ask_all(url: str, options: argparse.Namespace, result: Result) -> None:
    client = InferenceServerClient(url)
    for name in ("engine", "caller"):
        client.load_model(name)
    for megabytes in TINY_MEGABYTES if options.tiny else MEGABYTES:
        answer = ask(client, {"device": options.device, "bytes": megabytes << 20, "repeats": 5})
        served, here = answer["one_output_ms"], answer["here_ms"]
        result.add({"mb": megabytes, **answer, "copies_ms": served - here})
        if not (answer["right"] and answer["on_device"]):
            raise SystemExit(f"What came back is wrong or not on {options.device}: {answer}")
    for name in ("caller", "engine"):
        client.unload_model(name)
    client.close()


def ask(client: InferenceServerClient, question: dict[str, Any]) -> dict[str, Any]:
    tensor = InferInput("ASK", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([json.dumps(question).encode()], dtype=np.object_))
    answer: dict[str, Any] = json.loads(client.infer("caller", [tensor]).as_numpy("ANSWER")[0])
    return answer


if __name__ == "__main__":
    main()
