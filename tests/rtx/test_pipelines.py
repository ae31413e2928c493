"""TensorRT for RTX compiles every engine of every pipeline, as one node, with its attention recognised.

It proves operators, types, shapes and profiles. It does not prove numbers or speed: nothing runs.
"""

from typing import get_args

import pytest

from export.onnx.jobs import Precision
from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.engines.manifest import Kind, engine_directory, read_manifest
from streaming.network.inputs import GROUPS, group_of
from tests.rtx.compiling import Compiler
from tests.rtx.conftest import OpenSet
from tests.rtx.variants import VARIANTS, signatures

pytestmark = pytest.mark.timeout(600)  # exports and compiles of a busy machine

ADA, BLACKWELL = "sm89", "sm120"
ROWS = [*((pipeline, ADA) for pipeline in TRANSFORMER_FILES), ("longlive", BLACKWELL)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("pipeline", "target"), ROWS)
def test_every_engine_of_a_pipeline_compiles_whole(
    pipeline: str, target: str, precision: Precision, compiler: Compiler, small_sets: OpenSet
) -> None:
    store, engines = small_sets(pipeline, precision)

    problems = compiler.problems(store.models, engines.engines(), target)

    assert problems == {}


def test_no_kind_of_engine_and_no_group_of_inputs_is_left_out(small_sets: OpenSet) -> None:
    """Who adds one lets `tests.engines` or an option of `Request` export it, or this fails."""
    inputs = [s for options, _ in VARIANTS for signature in signatures(options) for s in signature.inputs]
    kinds, groups = set(), {group_of(tensor.name) for tensor in inputs}
    for pipeline in TRANSFORMER_FILES:
        store, engines = small_sets(pipeline, "fp32")
        for name in engines.engines():
            manifest = read_manifest(engine_directory(store.models, name))
            kinds.add(manifest.kind)
            groups |= {group_of(tensor.name) for tensor in manifest.inputs}

    assert kinds == set(get_args(Kind))
    assert set(GROUPS) <= groups
