"""TensorRT for RTX compiles what an export can add to a pipeline: adapters as inputs, the VACE branch."""

from dataclasses import fields
from pathlib import Path

import pytest

from export.onnx.jobs import Precision, Request
from tests.rtx.compiling import Compiler
from tests.rtx.variants import VARIANTS, export_variant

pytestmark = pytest.mark.timeout(600)  # exports and compiles of a busy machine

# Options of an export that add no graph: which checkpoint, sizes, and forms that other tests compile.
OTHERS = {"pipeline", "models", "sizes", "vae_type", "precision", "window", "demo", "form", "padding_keys"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_engine_of_a_variant_compiles_whole(
    variant: str, precision: Precision, compiler: Compiler, tmp_path: Path
) -> None:
    names = export_variant(variant, precision, tmp_path)

    problems = compiler.problems(tmp_path, names, "sm89")

    assert problems == {}


def test_no_option_of_an_export_is_left_out() -> None:
    assert {field.name for field in fields(Request)} - OTHERS == set(VARIANTS)
