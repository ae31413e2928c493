"""Attention exported for the CPU: ONNX Runtime's own operator, with the numbers of the formula."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from export.graphs.layers import attention
from export.graphs.signature import Signature, example
from export.onnx.onnx_export import FORM_OPS, ExportError, check_onnx, export_onnx
from streaming.engines.engine import OrtEngine
from streaming.network.inputs import TensorSpec

HEADS, SIZE, KEYS = 3, 8, 7


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return attention(q, k, v, bias), attention(q, k, v, scale=1.0)


SIGNATURE = Signature(
    inputs=(
        TensorSpec("q", (1, "T", HEADS, SIZE)),
        TensorSpec("k", (1, KEYS, HEADS, SIZE)),
        TensorSpec("v", (1, KEYS, HEADS, SIZE)),
        TensorSpec("bias", (1, 1, 1, KEYS)),
    ),
    outputs=(
        TensorSpec("biased", (1, "T", HEADS, SIZE)),
        TensorSpec("plain", (1, "T", HEADS, SIZE)),
    ),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attention") / "model.onnx"
    export_onnx(Attention(), SIGNATURE, {"T": 5}, path, form="cpu")
    return path


@pytest.mark.parametrize("queries", [1, 5, 40])
def test_it_computes_the_formula(exported: Path, queries: int) -> None:
    generator = torch.Generator().manual_seed(queries)
    shapes = {spec.name: example(spec, {"T": queries}).shape for spec in SIGNATURE.inputs}
    given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    given["bias"] = torch.tensor([0.0, -1e4, -0.7, 0.0, -1e4, 2.0, 0.0]).reshape(1, 1, 1, KEYS)

    results = OrtEngine(exported, threads=1).run(given, ["biased", "plain"])

    for name, bias, scale in (("biased", given["bias"], SIZE**-0.5), ("plain", torch.zeros(1), 1.0)):
        logits = torch.einsum("btnd,bsnd->bnts", given["q"], given["k"]) * scale + bias
        expected = torch.einsum("bnts,bsnd->btnd", logits.softmax(-1), given["v"])
        torch.testing.assert_close(results[name], expected, atol=2e-5, rtol=2e-5)


def test_it_is_one_operator_and_for_the_cpu_only(exported: Path) -> None:
    operators = [node.op_type for node in onnx.load(str(exported)).graph.node]

    assert operators.count("MultiHeadAttention") == 2
    assert "Softmax" not in operators
    check_onnx(exported, operators=FORM_OPS["cpu"])
    with pytest.raises(ExportError, match="operators that are not on the list of allowed ones: MultiHead"):
        check_onnx(exported)
