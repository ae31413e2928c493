"""What a load is: decided once, by the gateway, and obeyed by the pipeline's model in Triton. Torch-free."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError, model_validator

from streaming.engines.engine_set import Variant
from streaming.engines.ort import Provider
from streaming.engines.records import EngineError, Record
from streaming.specs import VaeType

# Where engines run: in ONNX Runtime in the pipeline's own process; as models of the same Triton server; or in
# PyTorch in the pipeline's process, as the modules that the others are exported from.
Backend = Literal["onnxruntime", "triton", "pytorch"]
# Load parameter `backend`. auto: what is fastest of what is here, see gateway/serving/load_plans.py
BackendChoice = Literal["auto", "onnxruntime", "triton", "pytorch"]
TorchPrecision = Literal["fp32", "bf16"]
EncoderCache = Literal["shared", "separate"]
VACE_CHOICES: Final = ("vace_encoder_cache", "vace_pad_attention")  # load parameters
PLAN: Final = "plan"  # parameter of the pipeline's Triton model that holds the plan as JSON


class TorchSwitches(Record):
    """What may make PyTorch faster, each for itself; all but `spare_bias` count on a GPU only.

    cuda_graph      calls of the transformer are recorded once per shape and played back
    spare_bias      the attention gets no bias by key where no key is hidden
    fused           norms, modulation, gates and rotary encoding, by torch.compile
    vae_bf16        the autoencoder computes in bfloat16, if the transformer does
    channels_last   its convolutions have the channels innermost
    device_noise    noise is drawn on the GPU: a seed gives another stream than on the CPU
    """

    cuda_graph: bool = True
    spare_bias: bool = True
    fused: bool = False
    vae_bf16: bool = True
    channels_last: bool = False
    device_noise: bool = False


class TorchSettings(Record):
    """How a server runs checkpoints in PyTorch; auto: on a GPU if there is one, in bfloat16 there."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    switches: TorchSwitches = TorchSwitches()


class TorchPlan(Record):
    """The checkpoint that PyTorch runs, and how.

    checkpoints      directory of models
    device           cpu, or cuda:0: of everything but the text encoder
    text_device      of the text encoder
    text_precision   of its weights
    """

    checkpoints: Path
    vae_type: VaeType
    precision: TorchPrecision = "fp32"
    device: str = "cpu"
    text_device: str = "cpu"
    text_precision: TorchPrecision = "fp32"
    switches: TorchSwitches = TorchSwitches()

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def vae_precision(self) -> TorchPrecision:
        return self.precision if self.switches.vae_bf16 else "fp32"


class PlannedAdapter(Record):
    """A LoRA file of a load.

    path      of the file
    name      what the client calls it
    scale     how strongly it counts
    runtime   it lies beside the weights, and each stream may turn its scale; else it is merged into them
    """

    path: Path
    name: str
    scale: float
    runtime: bool = False


class VacePlan(Record):
    """How the VACE branch is used.

    encoder_cache   of the two clips of a context; None: as the reference has it for this autoencoder
    pad_attention   zero keys of the reference's attention take part in the branch
    """

    encoder_cache: EncoderCache | None = None
    pad_attention: bool = True

    @staticmethod
    def of(load_params: Mapping[str, Any]) -> "VacePlan | None":
        """As a load asks for it; None: without the branch."""
        if not load_params.get("vace_enabled"):
            return None
        return VacePlan(
            encoder_cache=load_params.get("vace_encoder_cache"),
            pad_attention=load_params.get("vace_pad_attention", True),
        )


class LoadPlan(Record):
    """A load of a pipeline with a model. Sizes in pixels.

    engine_set   directory of the set; None: no engines, but a checkpoint
    models       directory of the engines' Triton models; prompts are remembered beside it
    gpus         numbers of the GPUs that run the engines' TensorRT plans; none: ONNX Runtime runs the graphs
    provider     of ONNX Runtime, in backend `onnxruntime`
    make_room    engines that leave the memory while the text encoder is in it, in the order of loading; none:
                 it is always there
    pytorch      of backend `pytorch`
    adapters     LoRA files, in the order of the load
    adapted      the transformer takes LoRA files beside its weights, of which there may be none yet
    loop         what was chosen of the pipeline's loop, see `LOAD_CHOICES`
    vace         None: the pipeline is loaded without its VACE branch
    preprocessors   directory of models, where those of preprocessors are; None: there are none
    """

    engine_set: Path | None = None
    models: Path
    height: int
    width: int
    backend: Backend = "onnxruntime"
    gpus: tuple[int, ...] = ()
    provider: Provider = "cpu"
    make_room: tuple[str, ...] = ()
    pytorch: TorchPlan | None = None
    adapters: tuple[PlannedAdapter, ...] = ()
    adapted: bool = False
    base_seed: int
    loop: Mapping[str, int | bool | None] = {}
    vace: VacePlan | None = None
    preprocessors: Path | None = None

    @model_validator(mode="after")
    def _has_weights(self) -> "LoadPlan":
        has_checkpoint = self.pytorch is not None
        if has_checkpoint != (self.backend == "pytorch") or has_checkpoint != (self.engine_set is None):
            raise ValueError("backend pytorch runs a checkpoint, the others an engine set")
        return self

    @property
    def merged(self) -> tuple[PlannedAdapter, ...]:
        """LoRA files that are merged into the weights."""
        return tuple(adapter for adapter in self.adapters if not adapter.runtime)

    @property
    def beside(self) -> tuple[PlannedAdapter, ...]:
        """LoRA files beside the weights."""
        return tuple(adapter for adapter in self.adapters if adapter.runtime)

    @property
    def set_directory(self) -> Path:
        """Of the engine set, where there is one."""
        assert self.engine_set is not None, "backend pytorch has no engine set"
        return self.engine_set

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def variant(self) -> Variant:
        """What runs the engines."""
        return "tensorrt" if self.gpus else "onnxruntime"

    @property
    def computes_on_gpu(self) -> bool:
        """Whether the engines run there."""
        return bool(self.gpus) or self.provider != "cpu"

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
