"""The manifest of an engine: `engine.json` beside it says what it is (serving.md 8.4). Torch-free.

A file that exists proves nothing: whoever loads an engine reads its manifest and compares sizes or hashes.
"""

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import model_validator

from streaming.engines.records import REMEDY, EngineError, Record, read_record

MANIFEST = "engine.json"
ONNX_FILE = "model.onnx"
PLAN_FILE = "model.plan"
CONFIG = "config.pbtxt"  # of the Triton model, above the version directory
VERSION_DIRECTORY = "1"  # of every engine's Triton model
_CHUNK_BYTES = 1 << 22
_FORMER_FIELDS = ("keeps_caches", "begins_streams", "holds_inputs")

Kind = Literal[
    "transformer",
    "text_kv",
    "text_encoder",
    "vae_encoder_first",
    "vae_encoder_next",
    "vae_decoder_first",
    "vae_decoder_next",
]
CPU_PRECISIONS = ("fp32", "fp16")
DType = Literal["float32", "float16", "bfloat16", "int64"]
ITEM_BYTES: Final[dict[DType, int]] = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}


# portable: TensorRT and ONNX Runtime run it; cpu: ONNX Runtime only, faster on the CPU
Form = Literal["portable", "cpu"]


class TensorInfo(Record):
    """One input or output. An axis given as a string is dynamic; axes of one name have one size."""

    name: str
    shape: tuple[int | str, ...]
    dtype: DType

    def bytes(self, sizes: Mapping[str, int]) -> int:
        """Size of the tensor, its dynamic axes from `sizes`."""
        return prod((ITEM_BYTES[self.dtype], *(a if isinstance(a, int) else sizes[a] for a in self.shape)))


class FileInfo(Record):
    """A file as it was when the manifest was written."""

    file: str
    bytes: int
    sha256: str


class AxisRange(Record):
    """Sizes of a dynamic axis that an optimisation profile covers."""

    min: int
    opt: int
    max: int


HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]


class BuildOptions(Record):
    """How TensorRT builds a plan. Precision is not here: the graph decides it.

    level                    builder optimisation level, 0 to 5
    workspace_bytes          GPU memory that one layer may use
    refittable               weights may be changed in the plan later, for adapters; Triton itself never does
    version_compatible       runs on later TensorRT of the same major version, slower
    hardware_compatibility   GPUs that the plan runs on beside the one that built it
    """

    level: int = 3
    workspace_bytes: int = 8 << 30
    refittable: bool = False
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"


class TensorRTBuild(Record):
    """A plan: how it was built, and for what; it runs on nothing else.

    engine_set         that it was built for, which names the command that builds it again
    parity             largest difference to ONNX Runtime, relative to the largest element; None: not compared
    activation_bytes   device memory of an execution context, as TensorRT tells it; None: not known
    """

    engine_set: str
    plan: FileInfo
    version: str  # of TensorRT
    gpu: str
    compute_capability: str
    driver: str
    options: BuildOptions
    parity: float | None
    activation_bytes: int | None = None


class RtxBuild(Record):
    """An engine compiled by TensorRT for RTX; it runs on GPUs of one kind, with these versions.

    target   kind of GPU, such as sm89
    files    in the directory of this kind; the compiled graph first
    """

    target: str
    files: tuple[FileInfo, ...]
    plugin: str
    tensorrt_rtx: str
    onnxruntime: str

    @property
    def versions(self) -> tuple[str, str]:
        """Of what must be the same where it runs."""
        return self.plugin, self.tensorrt_rtx


class Quantization(Record):
    """How a graph got its float8 weights and activations, and what that costs.

    tool                 that calibrated it, with its version
    products             matrix products that are quantised
    calls                recorded calls of a real stream that it was calibrated with
    relative_rms_error   of another call's flow, against float32; cosine between both
    """

    tool: str
    products: int
    calls: int
    relative_rms_error: float
    cosine: float


class EngineManifest(Record):
    """An engine and where it comes from. What does not apply to its kind is None. Sizes in pixels."""

    name: str
    kind: Kind
    precision: str
    fingerprint: str  # of everything that the export depends on
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profiles: tuple[Mapping[str, AxisRange], ...]  # of the dynamic axes, by axis name
    opset: int
    files: tuple[FileInfo, ...]  # in the engine's directory; the graph first
    source_checkpoints: tuple[FileInfo, ...]
    exporter_version: str
    parity: float | None  # largest absolute difference to PyTorch; None: this precision does not run here
    pipeline: str | None = None
    height: int | None = None
    width: int | None = None
    tokens_per_frame: int | None = None
    cache_tokens: int | None = None  # None for a transformer: it takes any number
    layers: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    text_len: int | None = None
    text_dim: int | None = None
    vace_blocks: int | None = None  # of the branch in a transformer, or in its text side
    loras: tuple[str, ...] = ()
    quantization: Quantization | None = None  # of precision fp8
    form: Form = "portable"
    tensorrt: TensorRTBuild | None = None
    rtx: tuple[RtxBuild, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_former_fields(cls, values: Any) -> Any:
        """Engines exported by earlier versions say more, which no longer matters."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name not in _FORMER_FIELDS}

    @property
    def bytes(self) -> int:
        """Size of the engine's files."""
        return sum(file.bytes for file in self.files)

    def largest_sizes(self) -> dict[str, int]:
        """Of every dynamic axis, in any profile."""
        axes = {axis for profile in self.profiles for axis in profile}
        return {axis: max(p[axis].max for p in self.profiles if axis in p) for axis in axes}


def engine_directory(models: Path, name: str) -> Path:
    """Where the files of engine `name` are, in the model repository `models`."""
    return models / name / VERSION_DIRECTORY


def read_manifest(directory: Path, name: str | None = None) -> EngineManifest:
    """The manifest of the engine in `directory`.

    name: what the engine has to be called; None: its Triton model, above `directory`
    Raises EngineError when there is none that can be read, or it is another engine's.
    """
    name = name or directory.parent.name
    manifest = read_record(directory / MANIFEST, EngineManifest, "There is no engine")
    if manifest.name != name:
        raise EngineError(
            f"'{directory}' holds engine '{manifest.name}', not '{name}': files were moved. {REMEDY}"
        )
    return manifest


def check_facts(manifest: EngineManifest, facts: Mapping[str, object]) -> None:
    """Raises EngineError unless the fields of the manifest have these values."""
    for name, wanted in facts.items():
        found = getattr(manifest, name)
        if found != wanted:
            raise EngineError(
                f"Engine '{manifest.name}' is not the one that is needed: its {name} is {found}, not "
                f"{wanted}. {REMEDY}"
            )


def check_runs_on_cpu(manifest: EngineManifest) -> None:
    """Raises EngineError for a precision that ONNX Runtime does not have on the CPU."""
    if manifest.precision not in CPU_PRECISIONS:
        raise EngineError(
            f"Engine '{manifest.name}' is {manifest.precision}, which ONNX Runtime cannot run on the CPU. "
            "Export with --precision fp32 for this machine, or build it for a GPU: wanstream-build."
        )


def check_files(directory: Path, manifest: EngineManifest, *, hashes: bool = True) -> None:
    """Compare the engine's files with the manifest. Raises EngineError that names the first wrong one.

    hashes: False compares sizes only, which takes no time
    """
    for info in manifest.files:
        path = directory / info.file
        if not path.is_file():
            raise EngineError(f"Engine '{manifest.name}' is incomplete: '{path}' is missing. {REMEDY}")
        size = path.stat().st_size
        if size != info.bytes:
            raise EngineError(
                f"Engine '{manifest.name}' is damaged: '{path}' has {size} bytes, not {info.bytes}. {REMEDY}"
            )
        if hashes and sha256(path) != info.sha256:
            raise EngineError(
                f"Engine '{manifest.name}' is damaged: the content of '{path}' has changed since the export. "
                f"{REMEDY}"
            )


def file_info(path: Path, name: str | None = None) -> FileInfo:
    """Size and hash of a file, under its own name or another."""
    return FileInfo(file=name or path.name, bytes=path.stat().st_size, sha256=sha256(path))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(values: object) -> str:
    """Hash of a JSON value; the order of an object's keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
