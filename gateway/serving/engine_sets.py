"""Exported engines, as the gateway sees them: which pipelines and sizes they serve."""

import importlib.util
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.serving.adapters import live_adapters
from gateway.serving.demo import DemoEngines
from gateway.serving.interface import Availability, Combination, ServingError, StageCallback, fp8_remedy
from streaming.engines.demo import OPENING
from streaming.engines.engine_set import SET, EngineSet, read_engine_set
from streaming.engines.manifest import MANIFEST, EngineManifest, engine_directory, read_manifest
from streaming.engines.ort import GpuProviders, Provider
from streaming.engines.records import EngineError
from streaming.engines.rtx import check_compiled
from streaming.specs import SPECS, PipelineSpec

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "onnxruntime", "tokenizers", "ftfy", "safetensors")  # of the models of a pipeline
FP8 = "fp8"  # the precision that parameter `quantization` asks for, by the name
QUANTIZED = "fp8_e4m3fn"
_CPU_FIRST = ("fp32", "fp16", "bf16", FP8)
_GPU_FIRST = ("bf16", "fp16", "fp32", FP8)


@dataclass(frozen=True, slots=True)
class FoundSet:
    """An engine set and its directory."""

    directory: Path
    content: EngineSet


class EngineSets:
    """The directory into which `wanstream-export` writes."""

    def __init__(
        self,
        directory: Path,
        *,
        on_cpu: bool,
        demo: DemoEngines | None = None,
        gpu: GpuProviders | None = None,
    ) -> None:
        """on_cpu: the models run in this Python environment, in ONNX Runtime.

        demo: makes engines for pipelines that have none; None: they have to be exported by hand.
        gpu: what ONNX Runtime has there for a GPU; None: nothing.
        """
        self._gpu = gpu or GpuProviders()
        self.root = directory
        self._sets = directory / "sets"
        self.models = directory / "models"
        self.on_cpu = on_cpu
        self._demo = demo
        self._known: dict[Path, tuple[_Version, FoundSet | None]] = {}
        self._manifests: dict[str, tuple[_Version, EngineManifest]] = {}

    def availability(self, spec: PipelineSpec) -> Availability:
        """Whether there are engines for `spec`, and for which sizes."""
        missing = missing_packages(_PACKAGES) if self.on_cpu else []
        if missing:
            return Availability(False, packages_reason(spec, missing))
        if not self.on_cpu and not str(self.models).isascii():
            return Availability(
                False,
                f"Pipeline '{spec.id}' cannot be served from {self.models}: the models of an external Triton "
                "take names for ASCII. Choose another directory with WANSTREAM_ENGINES_DIR.",
            )
        if self._demo is not None and self.waits_for_demo(spec):
            about = self._demo.info
            servable = _servable([Combination(*about.size, "wan", None, about.vace)])
            return replace(servable, vace_default=False, note=about.note, examples=about.examples)
        sets = [found.content for found in self._of(spec)]
        if not sets:
            return Availability(
                False,
                f"The engines of '{spec.id}' are not exported. Run: wanstream-export {spec.id}, or "
                f"wanstream-export {spec.id} --demo for a tiny stand-in.",
            )
        to_come = self._makes(spec) and self._demo is not None and self._demo.info.vace
        combinations = [
            Combination(
                v.height,
                v.width,
                s.vae_type,
                QUANTIZED if s.precision == FP8 else None,
                vace=s.branch is not None or to_come,
            )
            for s in sets
            for v in s.vae
        ]
        servable = _servable(combinations, runtime_loras=self.takes_adapters(spec))
        # The same before it is made, and after.
        by_itself = any(s.branch for s in sets) and not self._makes(spec)
        return replace(servable, vace_default=by_itself, note=sets[0].note, examples=sets[0].examples)

    def opening(self) -> PipelineSpec | None:
        """The pipeline that a server begins with if nobody names one: a demonstration, or none.

        Real weights take long to load and much memory, so they wait until somebody asks.
        """
        spec = SPECS[OPENING]
        is_demo = self._demo is not None and self.availability(spec).available and not self.has_real(spec)
        return spec if is_demo else None

    async def prepare(
        self, spec: PipelineSpec, on_stage: StageCallback, *, adapters: bool = False, vace: bool = False
    ) -> None:
        """Make the demonstration engines if these are what `spec` is served by, and they are not there yet.

        adapters: those that take LoRA files beside their weights. vace: with the VACE branch, if the
        demonstration has one; once made, it is made again by a new version. Raises ServingError. May be
        cancelled.
        """
        if self._demo is not None and self.waits_for_demo(spec, adapters=adapters, vace=vace):
            vace = (vace or self._has_branch(spec, adapters)) and self._demo.info.vace
            await self._demo.make(spec, on_stage, adapters=adapters, vace=vace)

    def waits_for_demo(self, spec: PipelineSpec, *, adapters: bool = False, vace: bool = False) -> bool:
        """Whether the engines of `spec` are those of the demonstration, and have to be made first.

        adapters, vace: as of `prepare`
        """
        if self._demo is None or not self._makes(spec):
            return False
        if not self._of(spec, adapters) or not self._demo.is_current(spec, adapters=adapters):
            return True
        return vace and self._demo.info.vace and not self._has_branch(spec, adapters)

    def _has_branch(self, spec: PipelineSpec, adapters: bool = False) -> bool:
        """Whether there are engines of the VACE branch."""
        return any(found.content.branch for found in self._of(spec, adapters))

    def _makes(self, spec: PipelineSpec) -> bool:
        """Whether a pipeline is served by engines of the demonstration, made when they are wanted."""
        return self._demo is not None and self._demo.offers(spec) and not self.has_real(spec)

    def has_real(self, spec: PipelineSpec) -> bool:
        """Whether there are engines with real weights."""
        return any(not found.content.demo for found in self._of(spec))

    def takes_adapters(self, spec: PipelineSpec) -> bool:
        """Whether there are engines that take LoRA files beside their weights, or will be."""
        return bool(self._of(spec, adapters=True)) or self._makes(spec)

    def has_plans(self, spec: PipelineSpec) -> bool:
        """Whether real weights are built for a GPU that Triton can use."""
        plans = (f for f in self._of(spec) if f.content.serve_with == "tensorrt" and not f.content.demo)
        return not self.on_cpu and any(plans)

    def has_compiled(self, spec: PipelineSpec) -> bool:
        """Whether real weights are compiled by TensorRT for RTX for the GPU of this machine."""
        return any(not f.content.demo and self.provider(f) == "rtx" for f in self._of(spec))

    def provider(self, found: FoundSet) -> Provider:
        """What ONNX Runtime would compute these engines with, in the pipeline's process."""
        gpu = self._gpu
        if not self.on_cpu or (not gpu.cuda and (gpu.rtx is None or gpu.target is None)):
            return "cpu"
        try:
            manifests = {name: self.manifest(name) for name in found.content.engines()}
        except EngineError:
            return "cpu"  # the load tells what is wrong
        if gpu.rtx is not None and gpu.target is not None and self._are_compiled(manifests, gpu):
            return "rtx"
        portable = all(manifest.form == "portable" for manifest in manifests.values())
        return "cuda" if gpu.cuda and portable and found.content.precision != FP8 else "cpu"

    def _are_compiled(self, manifests: Mapping[str, EngineManifest], gpu: GpuProviders) -> bool:
        """All of them, for this GPU and these versions."""
        try:
            for name, manifest in manifests.items():
                check_compiled(engine_directory(self.models, name), manifest, gpu.target or "", gpu.rtx)
        except EngineError:
            return False
        return True

    def find(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> FoundSet:
        """The set for these load parameters. Raises ServingError that says what to export."""
        quantized = load_params.get("quantization")
        adapters = live_adapters(load_params)
        there = self._of(spec, adapters)
        if adapters and not there:
            raise ServingError(
                f"The engines of '{spec.id}' take no LoRA files beside their weights. Run: wanstream-export "
                f"{spec.id} --adapters, or load with merge_mode permanent_merge."
            )
        sets = [found for found in there if (found.content.precision == FP8) == bool(quantized)]
        if quantized and not sets:
            raise ServingError(
                f"There are no engines of '{spec.id}' with {quantized}. {fp8_remedy(spec.id)}, "
                "or load without it."
            )
        wanted = (load_params["height"], load_params["width"])
        if load_params.get("vace_enabled"):
            sets.sort(key=lambda found: found.content.branch is None)
        for found in sets:
            sizes = [(v.height, v.width) for v in found.content.vae]
            if found.content.vae_type == load_params["vae_type"] and wanted in sizes:
                return found
        raise ServingError(
            f"There are no engines of '{spec.id}' for {wanted[0]}x{wanted[1]} (height x width) with "
            f"vae_type {load_params['vae_type']}. Run: wanstream-export {spec.id} --size "
            f"{wanted[0]}x{wanted[1]} --vae-type {load_params['vae_type']}{' --adapters' * adapters}."
        )

    def manifest(self, name: str) -> EngineManifest:
        """Of an engine; read again only when it has changed, as sets are. Raises EngineError."""
        directory = engine_directory(self.models, name)
        version = _version(directory / MANIFEST)
        last = self._manifests.get(name)
        if last is None or last[0] != version:
            last = self._manifests[name] = version, read_manifest(directory)
        return last[1]

    def merged(self) -> list[FoundSet]:
        """Sets with LoRA files in their weights, of all pipelines."""
        return [found for found in self.all() if found.content.loras]

    def _of(self, spec: PipelineSpec, adapters: bool = False) -> list[FoundSet]:
        """Readable sets of a pipeline: real weights before demonstrations, then what runs best here.

        adapters: those that take LoRA files beside their weights, or those that do not, and are faster
        """
        wanted = (spec.id, adapters)
        sets = [
            found
            for found in self.all()
            if (found.content.pipeline, found.content.adapters) == wanted and not found.content.loras
        ]

        def worth(found: FoundSet) -> tuple[bool, int, int]:
            provider = self.provider(found)
            order = _CPU_FIRST if self.on_cpu and provider == "cpu" else _GPU_FIRST
            rung = ("rtx", "cuda", "cpu").index(provider)
            return found.content.demo, rung, order.index(found.content.precision)

        return sorted(sets, key=worth)

    def all(self) -> list[FoundSet]:
        """Every readable set. A file is read again only when it has changed: each offer asks for them."""
        known: dict[Path, tuple[_Version, FoundSet | None]] = {}
        for directory in sorted(self._sets.glob("*")):
            version = _version(directory / SET)
            last = self._known.get(directory)
            known[directory] = last if last and last[0] == version else (version, _read(directory))
        self._known = known
        return [found for _, found in known.values() if found is not None]


def missing_packages(names: Iterable[str]) -> list[str]:
    """Those that cannot be imported where the gateway runs."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def packages_reason(spec: PipelineSpec, missing: Iterable[str]) -> str:
    """Why a pipeline cannot be loaded without these packages."""
    return (
        f"Pipeline '{spec.id}' needs packages that are not installed: {', '.join(missing)}. "
        "Run: pip install 'wanstream[export]'."
    )


_Version = tuple[int, ...]


def _version(path: Path) -> _Version:
    """Something that changes with the file; empty when there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)


def _read(directory: Path) -> FoundSet | None:
    try:
        return FoundSet(directory, read_engine_set(directory))
    except EngineError as error:
        logger.warning("%s", error)
        return None


def _servable(combinations: list[Combination], *, runtime_loras: bool = True) -> Availability:
    quantizations = (c.quantization for c in combinations)
    return Availability(
        True,
        supported_resolutions=list(dict.fromkeys(c.size for c in combinations)),
        vae_types=tuple(dict.fromkeys(c.vae_type for c in combinations)),
        needs_models=False,
        loras=True,
        runtime_loras=runtime_loras,
        quantizations=tuple(dict.fromkeys(name for name in quantizations if name is not None)),
        combinations=tuple(dict.fromkeys(combinations)),
        vace=any(c.vace for c in combinations),
    )
