"""What an export can add to a pipeline, as the options of `Request` say: a new option joins by itself."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from benchmarks.random_weights import fill_random
from export.graphs.signature import Signature
from export.onnx.jobs import DTYPES, Component, Precision, Request, components_of
from export.onnx.onnx_export import export_onnx
from export.onnx.run import PlannedEngine, manifest_of
from streaming.engines.manifest import MANIFEST, ONNX_FILE, engine_directory
from tests.engines import SIZE, TRANSFORMER

Variant = tuple[str, ...]  # options that are on


def added(options: Variant, precision: Precision = "fp32", models: Path = Path()) -> Iterator[Component]:
    """The components that LongLive has with these options only, each with the graphs that are new in it."""
    plain = Request("longlive", models, (SIZE,), window=7, precision=precision)
    known = {graph.label for part in components_of(plain, TRANSFORMER) for graph in part.graphs}
    for part in components_of(dataclasses.replace(plain, **dict.fromkeys(options, True)), TRANSFORMER):
        graphs = tuple(graph for graph in part.graphs if graph.label not in known)
        if graphs:
            yield dataclasses.replace(part, graphs=graphs)


def _options() -> Variant:
    """Those that are off by default, and with which an export has further graphs."""
    names = [field.name for field in dataclasses.fields(Request) if field.default is False]
    return tuple(name for name in names if any(added((name,))))


OPTIONS: Final = _options()
# Each alone, and all of them together in the other precision.
VARIANTS: Final[tuple[tuple[Variant, Precision], ...]] = (
    *(((name,), "fp32") for name in OPTIONS),
    (OPTIONS, "bf16"),
)


def signatures(options: Variant) -> list[Signature]:
    """Of the graphs that a variant adds, without weights."""
    return [
        graph.build(modules)[1]
        for part in added(options)
        for modules in [part.published()]
        for graph in part.graphs
    ]


def export_variant(options: Variant, precision: Precision, models: Path) -> list[str]:
    """Write its engines with random weights; returns their names. models: of Triton."""
    names = []
    for part in added(options, precision, models):
        modules = part.published()
        for module in modules:
            fill_random(module, DTYPES[part.precision], torch.device("cpu"))
        for graph in part.graphs:
            module, signature = graph.build(modules)
            directory = engine_directory(models, graph.label)
            directory.mkdir(parents=True)
            export_onnx(module, signature, graph.example, directory / ONNX_FILE, DTYPES[part.precision])
            manifest = manifest_of(PlannedEngine(graph.label, "", part, (), graph), signature, (), None)
            (directory / MANIFEST).write_text(manifest.model_dump_json())
            names.append(graph.label)
    return names
