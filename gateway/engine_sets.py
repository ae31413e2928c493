"""Exported engines, as the gateway sees them: which pipelines and sizes they serve."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.engine_checks import check_engines
from gateway.serving import Availability, ServingError
from streaming.engine_set import EngineSet, read_engine_set
from streaming.records import EngineError
from streaming.specs import PipelineSpec

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "onnxruntime", "tokenizers", "ftfy", "safetensors")  # of the models of a pipeline
_CPU_SESSIONS = 8
FP8 = "fp8"  # the precision that parameter `quantization` asks for


@dataclass(frozen=True, slots=True)
class FoundSet:
    """An engine set and its directory."""

    directory: Path
    content: EngineSet


class EngineSets:
    """The directory into which `wanstream-export` writes."""

    def __init__(self, directory: Path, *, on_cpu: bool) -> None:
        """on_cpu: the models run in this Python environment, in ONNX Runtime."""
        self._sets = directory / "sets"
        self.models = directory / "models"
        self._on_cpu = on_cpu

    def availability(self, spec: PipelineSpec) -> Availability:
        """Whether there are engines for `spec`, and for which sizes."""
        missing = (
            [name for name in _PACKAGES if importlib.util.find_spec(name) is None] if self._on_cpu else []
        )
        if missing:
            return Availability(
                False,
                f"Pipeline '{spec.id}' needs packages that are not installed: {', '.join(missing)}. "
                "Run: pip install 'wanstream[export]'.",
            )
        sets = [found.content for found in self._of(spec)]
        if not sets:
            return Availability(
                False,
                f"The engines of '{spec.id}' are not exported. Run: wanstream-export {spec.id}, or "
                f"wanstream-export {spec.id} --demo for a tiny stand-in with random weights.",
            )
        return Availability(
            True,
            supported_resolutions=list(dict.fromkeys((v.height, v.width) for s in sets for v in s.vae)),
            vae_types=tuple(dict.fromkeys(s.vae_type for s in sets)),
            needs_models=False,
            vace=False,
            max_sessions=_CPU_SESSIONS if self._on_cpu else None,
        )

    def find(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> FoundSet:
        """The set for these load parameters. Raises ServingError that says what to export."""
        if load_params.get("loras"):
            raise ServingError("LoRA files cannot be used with exported engines yet; load without 'loras'.")
        quantized = load_params.get("quantization")
        sets = [found for found in self._of(spec) if (found.content.precision == FP8) == bool(quantized)]
        if quantized and not sets:
            raise ServingError(
                f"There are no engines of '{spec.id}' with {quantized}; load without it, or run: "
                f"wanstream-export {spec.id} --precision {FP8}."
            )
        wanted = (load_params["height"], load_params["width"])
        for found in sets:
            sizes = [(v.height, v.width) for v in found.content.vae]
            if found.content.vae_type == load_params["vae_type"] and wanted in sizes:
                return found
        raise ServingError(
            f"There are no engines of '{spec.id}' for {wanted[0]}x{wanted[1]} (height x width) with "
            f"vae_type {load_params['vae_type']}. Run: wanstream-export {spec.id} --size "
            f"{wanted[0]}x{wanted[1]} --vae-type {load_params['vae_type']}."
        )

    def check(self, found: FoundSet, names: Sequence[str]) -> None:
        """Raises ServingError unless these engines of the set are undamaged and run where Triton is."""
        try:
            check_engines(self.models, names, found.content.name, on_cpu=self._on_cpu)
        except EngineError as error:
            raise ServingError(str(error)) from error

    def _of(self, spec: PipelineSpec) -> list[FoundSet]:
        """Readable sets of a pipeline: real weights before demonstrations, then what runs best here."""
        sets = []
        for directory in sorted(self._sets.glob("*")):
            try:
                found = FoundSet(directory, read_engine_set(directory))
            except EngineError as error:
                logger.warning("%s", error)
                continue
            if found.content.pipeline == spec.id:
                sets.append(found)
        order = ("fp32", "fp16", "bf16", FP8) if self._on_cpu else ("bf16", "fp16", "fp32", FP8)
        return sorted(sets, key=lambda f: (f.content.demo, order.index(f.content.precision)))
