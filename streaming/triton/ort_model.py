"""An exported engine as a Triton model: ONNX Runtime on the CPU, whatever the graph is.

Imports Triton's Python package, so it can be imported in a model process of Triton only.
"""

import json
import logging
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from streaming.engines.manifest import ONNX_FILE, check_files, check_runs_on_cpu, read_manifest
from streaming.engines.ort import open_graph


class OrtModel:
    """Runs `model.onnx` of its version directory; `engine.json` beside it says what it is."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called by Triton once per load; what it raises is the answer to the load request."""
        config = json.loads(args["model_config"])
        threads = int(config.get("parameters", {}).get("threads", {}).get("string_value", "1"))
        directory = Path(args["model_repository"]) / args["model_version"]
        manifest = read_manifest(directory, args["model_name"])
        check_runs_on_cpu(manifest)
        check_files(directory, manifest)
        self._graph = open_graph(directory / ONNX_FILE, threads)
        self._inputs = tuple(tensor.name for tensor in manifest.inputs)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Called by Triton; one response per request, in order."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            names = list(request.requested_output_names())
            given = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs}
            feeds = {name: tensor.as_numpy() for name, tensor in given.items()}
            results = self._graph.run(names, feeds)  # computes only what is asked for
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(names, results, strict=True)]
            return pb_utils.InferenceResponse(tensors)
        except Exception as error:  # process boundary: the caller sees only what is sent
            logging.getLogger(__name__).exception("an engine failed")
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
