"""What is known about an engine: `engine.json` beside it (serving.md 8.4). Torch-free.

A file that exists proves nothing: whoever loads an engine reads its manifest and compares sizes or hashes.
"""

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from streaming.errors import WanstreamError

MANIFEST = "engine.json"
ONNX_FILE = "model.onnx"
PLAN_FILE = "model.plan"
REMEDY = "Export it again: wanstream-export."
_CHUNK_BYTES = 1 << 22

Kind = Literal[
    "transformer",
    "text_kv",
    "text_encoder",
    "vae_encoder_first",
    "vae_encoder_next",
    "vae_decoder_first",
    "vae_decoder_next",
]
DType = Literal["float32", "float16", "bfloat16", "int64"]
ITEM_BYTES: Final[dict[DType, int]] = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}


class EngineError(WanstreamError):
    """An engine is absent, damaged, or not the one that is needed."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(_Record):
    """One input or output. An axis given as a string is dynamic; axes of one name have one size."""

    name: str
    shape: tuple[int | str, ...]
    dtype: DType

    def bytes(self, sizes: Mapping[str, int]) -> int:
        """Size of the tensor, its dynamic axes from `sizes`."""
        return prod((ITEM_BYTES[self.dtype], *(a if isinstance(a, int) else sizes[a] for a in self.shape)))


class FileInfo(_Record):
    """A file as it was when the manifest was written."""

    file: str
    bytes: int
    sha256: str


class AxisRange(_Record):
    """Sizes of a dynamic axis that an optimisation profile covers."""

    min: int
    opt: int
    max: int


class TensorRTBuild(_Record):
    """How a plan was built; it runs on nothing else.

    activation_bytes   device memory of an execution context, as TensorRT tells it; None: not known
    """

    version: str
    gpu: str
    compute_capability: str
    driver: str
    flags: tuple[str, ...]
    activation_bytes: int | None = None


class EngineManifest(_Record):
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
    loras: tuple[str, ...] = ()
    keeps_caches: bool = False  # its model on ONNX Runtime can, see `streaming/kept.py`
    tensorrt: TensorRTBuild | None = None

    @property
    def bytes(self) -> int:
        """Size of the engine's files."""
        return sum(file.bytes for file in self.files)

    def largest_sizes(self) -> dict[str, int]:
        """Of every dynamic axis, in any profile."""
        axes = {axis for profile in self.profiles for axis in profile}
        return {axis: max(p[axis].max for p in self.profiles if axis in p) for axis in axes}


def read_manifest(directory: Path) -> EngineManifest:
    """The manifest of the engine in `directory`. Raises EngineError when there is none that can be read."""
    path = directory / MANIFEST
    try:
        return EngineManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise EngineError(f"There is no engine in '{directory}': it has no {MANIFEST}. {REMEDY}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise EngineError(f"'{path}' is damaged ({where}: {first['msg']}). {REMEDY}") from error


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
