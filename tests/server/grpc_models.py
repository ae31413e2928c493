"""The models of a Triton server, called from outside as a pipeline calls them from inside."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton_grpc
from tritonclient.utils import np_to_triton_dtype


class GrpcModels:
    """A `ModelRunner` for the server at `url`, host:port."""

    def __init__(self, url: str) -> None:
        self.client = triton_grpc.InferenceServerClient(url)

    def is_ready(self, name: str) -> bool:
        return bool(self.client.is_model_ready(name))

    def run(
        self, name: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: list[str]
    ) -> dict[str, npt.NDArray[Any]]:
        tensors = []
        for key, value in inputs.items():
            tensor = triton_grpc.InferInput(key, list(value.shape), np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(np.ascontiguousarray(value))
            tensors.append(tensor)
        wanted = [triton_grpc.InferRequestedOutput(key) for key in outputs]
        result = self.client.infer(name, tensors, outputs=wanted)
        return {key: result.as_numpy(key).copy() for key in outputs}

    def load(self, name: str, config: str | None = None) -> None:
        self.client.load_model(name, config=config)

    def unload(self, name: str) -> None:
        self.client.unload_model(name)
