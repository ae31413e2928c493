"""What a load is: decided once, by the gateway, and obeyed by the pipeline's model in Triton. Torch-free."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from streaming.engines.engine_set import Variant
from streaming.engines.records import EngineError, Record

# Where engines run: in ONNX Runtime in the pipeline's own process, or as models of the same Triton server.
Backend = Literal["onnxruntime", "triton"]
# Load parameter `backend`. auto: plans if a set is served with them and Triton has a GPU, else ONNX Runtime
BackendChoice = Literal["auto", "onnxruntime", "triton"]
PLAN: Final = "plan"  # parameter of the pipeline's Triton model that holds the plan as JSON


class LoadPlan(Record):
    """A load of a pipeline with engines. Sizes in pixels.

    engine_set   directory of the set
    models       directory of the engines' Triton models
    gpus         numbers of the GPUs that run the engines' TensorRT plans; none: ONNX Runtime runs the graphs
    make_room    engines that leave the memory while the text encoder is in it, in the order of loading; none:
                 it is always there
    loop         what was chosen of the pipeline's loop, see `LOAD_CHOICES`
    """

    engine_set: Path
    models: Path
    height: int
    width: int
    backend: Backend = "onnxruntime"
    gpus: tuple[int, ...] = ()
    make_room: tuple[str, ...] = ()
    base_seed: int
    loop: Mapping[str, int | bool | None] = {}

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def variant(self) -> Variant:
        """What runs the engines."""
        return "tensorrt" if self.gpus else "onnxruntime"

    def as_parameters(self) -> dict[str, str]:
        """For the pipeline's Triton model."""
        return {PLAN: self.model_dump_json()}

    @staticmethod
    def of(parameters: Mapping[str, str]) -> "LoadPlan":
        """From the parameters of a Triton model. Raises EngineError."""
        if PLAN not in parameters:
            raise EngineError(f"The load has no parameter '{PLAN}': load the pipeline through the gateway.")
        try:
            return LoadPlan.model_validate_json(parameters[PLAN])
        except ValidationError as error:
            first = error.errors()[0]
            raise EngineError(
                f"Parameter '{PLAN}' of the load cannot be read ({'.'.join(map(str, first['loc']))}: "
                f"{first['msg']}). Gateway and Triton must have the same version of wanstream."
            ) from error
