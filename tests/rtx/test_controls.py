"""What has to fail does: without these a compiler that takes everything would pass the other tests."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.onnx.onnx_export import export_onnx
from streaming.engines.manifest import ONNX_FILE, engine_directory, read_manifest
from streaming.engines.rtx import profile_options
from tests.rtx.compiling import Compiler, problems_of
from tests.rtx.conftest import OpenSet
from tests.tiny_pipeline import modules

pytestmark = pytest.mark.timeout(600)  # exports and compiles of a busy machine

FLOAT = TensorProto.FLOAT


def graph(path: Path, nodes: list[onnx.NodeProto], shape: list[int], *weights: onnx.TensorProto) -> Path:
    """A file with input x of this shape and output y."""
    x, y = (helper.make_tensor_value_info(name, FLOAT, dims) for name, dims in (("x", shape), ("y", None)))
    model = helper.make_model(
        helper.make_graph(nodes, "control", [x], [y], list(weights)),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, str(path))
    return path


@pytest.fixture
def float8(tmp_path: Path) -> Path:
    """A product of matrices in float8, as a quantised transformer has many."""
    scale = numpy_helper.from_array(np.array(0.02, np.float32), "s")
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    weight = numpy_helper.from_array(np.full((256, 128), 0.1, np.float32), "w")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"]),
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    return graph(tmp_path / "float8.onnx", nodes, [1, 64, 256], weight, scale, zero)


def test_float8_compiles_only_for_gpus_that_have_it(compiler: Compiler, float8: Path) -> None:
    ada, ampere = (compiler.compile(float8, target, {}) for target in ("sm89", "sm86"))

    assert ada.error == ""
    assert "Cannot compile for target(s) sm86" in ampere.error


def test_a_graph_with_an_operator_that_it_lacks_is_refused_whole(compiler: Compiler, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Det", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]

    compiled = compiler.compile(graph(tmp_path / "det.onnx", nodes, [4, 4, 4]), "sm89", {})

    assert "Unable to compile any nodes" in compiled.error


def test_the_form_for_the_cpu_is_refused(compiler: Compiler, tmp_path: Path) -> None:
    transformer = modules("wan", torch.float32)[0]
    path = tmp_path / ONNX_FILE
    sizes = {"F": 2, "T": 4, "S+T": 8, "S": 4}

    export_onnx(transformer, transformer.signature(4), sizes, path, form="cpu")

    assert compiler.compile(path, "sm89", {}).error


def test_without_profiles_the_compiler_complains(compiler: Compiler, small_sets: OpenSet) -> None:
    store, engines = small_sets("longlive", "fp32")
    directory = engine_directory(store.models, engines.transformer)
    path, manifest = directory / ONNX_FILE, read_manifest(directory)

    without, with_them = (compiler.compile(path, "sm89", o) for o in ({}, profile_options(manifest)))

    assert "not self-consistent" in " ".join(problems_of(without, path, manifest))
    assert problems_of(with_them, path, manifest) == []


def test_a_softmax_outside_attention_counts_as_not_fused(
    compiler: Compiler, small_sets: OpenSet, tmp_path: Path
) -> None:
    store, engines = small_sets("longlive", "fp32")
    manifest = read_manifest(engine_directory(store.models, engines.text_kv))
    path = graph(tmp_path / "softmax.onnx", [helper.make_node("Softmax", ["x"], ["y"])], [1, 8])

    problems = problems_of(compiler.compile(path, "sm89", {}), path, manifest)

    assert problems == ["0 attentions are fused, not 1"]
