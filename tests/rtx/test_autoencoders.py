"""The autoencoders that the small checkpoints do not have, and the half precision of those that they have."""

from pathlib import Path
from typing import get_args

import pytest
from torch import nn

from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.vae import VaeConfig, WanVae
from export.onnx.jobs import DTYPES, Precision, Request, components_of
from export.onnx.onnx_export import export_onnx
from export.onnx.run import PlannedEngine, manifest_of
from streaming.engines.manifest import MANIFEST, ONNX_FILE, Kind, engine_directory
from streaming.specs import VaeType
from tests.engines import SIZE, TRANSFORMER
from tests.random_weights import randomized
from tests.rtx.compiling import Compiler

pytestmark = pytest.mark.timeout(600)  # exports and compiles of a busy machine

TINY = TinyVaeConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4))
LIGHT = TinyVaeConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4), normalized=True)
# Every type compiles, and both networks do in both precisions: the full one, which the small checkpoints
# have, is compiled in float32 with their pipelines.
SMALL: dict[tuple[VaeType, Precision], nn.Module] = {
    ("lightvae", "fp16"): WanVae(VaeConfig(dim=16, num_res_blocks=1, pruning_rate=0.75)),
    ("tae", "fp32"): TinyVae(TINY),
    ("lighttae", "fp16"): TinyVae(LIGHT),
}


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind.startswith("vae")])
@pytest.mark.parametrize(("vae_type", "precision"), SMALL)
def test_every_graph_of_an_autoencoder_compiles_whole(
    vae_type: VaeType, precision: Precision, kind: Kind, compiler: Compiler, tmp_path: Path
) -> None:
    vae = randomized(SMALL[vae_type, precision]).to(DTYPES[precision])
    wanted = Request("longlive", tmp_path, (SIZE,), vae_type=vae_type, precision=precision)
    parts = components_of(wanted, TRANSFORMER)
    part, graph = next((part, graph) for part in parts for graph in part.graphs if graph.kind == kind)
    module, signature = graph.build(vae)
    directory = engine_directory(tmp_path, graph.label)
    directory.mkdir(parents=True)
    export_onnx(module, signature, graph.example, directory / ONNX_FILE, DTYPES[precision])
    manifest = manifest_of(PlannedEngine(graph.label, "", part, (), graph), signature, (), None)
    (directory / MANIFEST).write_text(manifest.model_dump_json())

    problems = compiler.problems(tmp_path, [graph.label], "sm89")

    assert problems == {}
