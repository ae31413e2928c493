"""The registry of what an export can add to a pipeline: a new option of `Request` is a row here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.random_weights import fill_random
from export.checkpoints.load import transformer_modules
from export.checkpoints.vace import branch_modules
from export.graphs.signature import Signature
from export.graphs.vace import VaceConfig
from export.onnx.jobs import DTYPES, Precision, Request, components_of
from export.onnx.onnx_export import export_onnx
from export.onnx.run import PlannedEngine, manifest_of
from streaming.engines.manifest import MANIFEST, ONNX_FILE, engine_directory
from streaming.specs import CachedKeys
from tests.engines import SIZE, TRANSFORMER

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {"adapters": {"adapters": True}, "vace": {"vace": True}}
_BRANCH = VaceConfig((0,))  # its block beside the only layer


def signatures(variant: str) -> list[Signature]:
    """Of the graphs that a variant adds, without weights."""
    return [graph.build(_modules(variant))[1] for _, graph in _graphs(variant, "fp32", Path())]


def export_variant(variant: str, precision: Precision, models: Path) -> list[str]:
    """Write its engines with random weights; returns their names. models: of Triton."""
    names = []
    modules = _modules(variant)
    for module in modules:
        fill_random(module, DTYPES[precision], torch.device("cpu"))
    for part, graph in _graphs(variant, precision, models):
        module, signature = graph.build(modules)
        directory = engine_directory(models, graph.label)
        directory.mkdir(parents=True)
        export_onnx(module, signature, graph.example, directory / ONNX_FILE, DTYPES[precision])
        manifest = manifest_of(PlannedEngine(graph.label, "", part, (), graph), signature, (), None)
        if manifest.vace_blocks is not None:
            manifest = manifest.model_copy(update={"vace_blocks": len(_BRANCH.layers)})
        (directory / MANIFEST).write_text(manifest.model_dump_json())
        names.append(graph.label)
    return names


def _graphs(variant: str, precision: Precision, models: Path) -> list[tuple[Any, Any]]:
    """The transformer's and its text side's; of the branch, those that have it."""
    wanted = Request("longlive", models, (SIZE,), window=7, precision=precision, **VARIANTS[variant])
    parts = [p for p in components_of(wanted, TRANSFORMER) if p.graphs[0].kind == "transformer"]
    return [(parts[-1], graph) for graph in parts[-1].graphs]


def _modules(variant: str) -> Any:
    if "vace" in VARIANTS[variant]:
        return branch_modules(TRANSFORMER, _BRANCH, CachedKeys.ROTATED)
    return transformer_modules(TRANSFORMER, CachedKeys.ROTATED, adapted=True)
