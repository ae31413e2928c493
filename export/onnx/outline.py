"""What an export of the released weights would consist of, without reading or making any weight.

The networks are built on the meta device, so the engines of a 14B model, their memory and their TensorRT
builds can be looked at on any machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from export.fp8.quantization import is_quantized
from export.onnx.jobs import DTYPES, Component, Request, components_of
from export.onnx.room import Sized, as_json, fits
from export.onnx.run import PlannedEngine, engine_set, manifest_of
from export.onnx.store import EngineStore
from export.tensorrt.engine_build import build_plan, timing_cache
from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import ONNX_FILE, EngineManifest, FileInfo
from streaming.memory.machine import Machine
from streaming.memory.plan import GPU, MemoryPlan, Placement, memory_plan
from streaming.specs import LoopSpec

_UNKNOWN = ""  # hash of what does not exist


@dataclass(frozen=True, slots=True)
class Outline:
    """Engines that do not exist. Their manifests are those of an export but for hashes and parity."""

    engines: EngineSet
    manifests: Mapping[str, EngineManifest]
    loop: LoopSpec

    def memory(self, placement: Placement = GPU) -> list[MemoryPlan]:
        """Of a load, for each size of picture."""
        sizes = [(vae.height, vae.width) for vae in self.engines.vae]
        return [memory_plan(self.engines, self.manifests, self.loop, size, placement) for size in sizes]

    def fits(self, gpu: int | None) -> Sized:
        """How a load of each size goes into a GPU of so many bytes; None: nobody can tell how many."""
        return fits(self.engines, self.manifests, self.loop, gpu)

    def as_json(self, root: Path, gpu: int | None = None) -> dict[str, Any]:
        """The engines, how TensorRT would build them below `root`, and the memory of a load.

        gpu: bytes of the GPU's memory; None: nobody can tell
        """
        store, cache = EngineStore(root), timing_cache(root, Machine.here())
        fitted = as_json(self.fits(gpu))
        return {
            "engine_set": self.engines.name,
            "engines": [manifest.model_dump(mode="json") for manifest in self.manifests.values()],
            "builds": [
                build_plan(store.engine(name), manifest, cache).model_dump(mode="json")
                for name, manifest in self.manifests.items()
            ],
            "gpu_memory_bytes": gpu,
            "memory": [plan.as_json() | fitted[plan.height, plan.width] for plan in self.memory()],
        }


def outline(request: Request) -> Outline:
    """The engines of a request for the released files. Raises WanstreamError if it cannot be met."""
    loop, config = request.loop, TRANSFORMER_FILES[request.pipeline].published
    planned: list[PlannedEngine] = []
    manifests: dict[str, EngineManifest] = {}
    for component in components_of(request, config):
        modules = component.published()
        for graph in component.graphs:
            name = f"{graph.label}_{component.precision}"
            engine = PlannedEngine(name, _UNKNOWN, component, (), graph)
            module, signature = graph.build(modules)
            weights = FileInfo(file=ONNX_FILE, bytes=_weight_bytes(module, component), sha256=_UNKNOWN)
            planned.append(engine)
            manifests[name] = manifest_of(engine, signature, (weights,), None)
    vae = planned[-1].component.published()
    return Outline(engine_set(request, planned, config, vae), manifests, loop)


def _weight_bytes(module: nn.Module, component: Component) -> int:
    """Of a module's parameters in the component's precision."""
    total = 0
    for name, owner in module.named_modules():
        own = 4 if getattr(owner, "float32_parameters", False) else DTYPES[component.precision].itemsize
        for key, parameter in owner.named_parameters(recurse=False):
            float8 = component.request is not None and is_quantized(f"{name}.{key}")
            total += (1 if float8 else own) * parameter.numel()
    return total
