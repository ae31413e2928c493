"""TensorRT for RTX compiles what an export can add to a pipeline: adapters as inputs, the VACE branch."""

from pathlib import Path

import pytest

from export.onnx.jobs import Precision
from tests.rtx.compiling import Compiler
from tests.rtx.variants import OPTIONS, VARIANTS, Variant, export_variant

pytestmark = pytest.mark.timeout(600)  # exports and compiles of a busy machine


@pytest.mark.parametrize(("options", "precision"), VARIANTS, ids=str)
def test_every_engine_of_a_variant_compiles_whole(
    options: Variant, precision: Precision, compiler: Compiler, tmp_path: Path
) -> None:
    names = export_variant(options, precision, tmp_path)

    problems = compiler.problems(tmp_path, names, "sm89")

    assert names
    assert problems == {}


def test_the_options_that_add_graphs_are_found() -> None:
    assert {"adapters", "vace"} <= set(OPTIONS)
