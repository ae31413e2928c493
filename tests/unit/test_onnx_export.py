"""An exported file is valid, has allowed operators only, keeps weight names, computes what PyTorch does."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from export.graphs.layers import Linear
from export.graphs.signature import Signature
from export.onnx.onnx_export import ExportError, check_onnx, check_parity, export_onnx
from streaming.network.inputs import TensorSpec
from tests.random_weights import randomized

SIGNATURE = Signature(inputs=(TensorSpec("x", ("T", 16)),), outputs=(TensorSpec("y", ("T", 12)),))
SIZES = {"T": 2}


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)[:, :12]


class Untransposed(nn.Module):
    """Its weight would be found by name if the exporter kept the name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_t = nn.Parameter(torch.empty(12, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight_t.t()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path, module = tmp_path_factory.mktemp("onnx") / "model.onnx", randomized(Projection())
    export_onnx(module, SIGNATURE, SIZES, path)
    return path, module


def test_weights_lie_beside_the_graph_under_their_names(exported: tuple[Path, nn.Module]) -> None:
    path, module = exported

    graph = onnx.load(str(path)).graph

    weight = next(tensor for tensor in graph.initializer if tensor.name == "proj.weight_t")
    expected = dict(module.named_parameters())["proj.weight_t"].detach()
    torch.testing.assert_close(torch.from_numpy(onnx.numpy_helper.to_array(weight).copy()), expected)
    assert path.with_name("model.onnx.data").stat().st_size >= expected.nbytes


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_an_export_computes_the_same_for_any_size_of_a_dynamic_axis(
    exported: tuple[Path, nn.Module], tokens: int
) -> None:
    path, module = exported

    difference = check_parity(path, module, SIGNATURE, {"T": tokens})

    assert difference < 1e-5


def test_other_weights_than_the_exported_ones_are_noticed(exported: tuple[Path, nn.Module]) -> None:
    path, _ = exported
    other = randomized(Projection(), seed=1)

    with pytest.raises(ExportError, match="does not compute what PyTorch does: output y differs"):
        check_parity(path, other, SIGNATURE, SIZES)


def test_an_operator_that_is_not_on_the_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not on the list of allowed ones: Erf"):
        export_onnx(Foreign().eval(), SIGNATURE, SIZES, tmp_path / "model.onnx")


def test_a_weight_that_lost_its_name_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="lost the names of 1 weights, such as weight_t"):
        export_onnx(randomized(Untransposed()), SIGNATURE, SIZES, tmp_path / "model.onnx")


@pytest.mark.parametrize("keep", [0, 100])
def test_a_truncated_graph_is_no_valid_file(
    exported: tuple[Path, nn.Module], tmp_path: Path, keep: int
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported[0].read_bytes()[:keep])

    with pytest.raises(ExportError, match="is no valid ONNX file"):
        check_onnx(path)


def test_a_graph_without_its_weights_is_no_valid_file(
    exported: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported[0].read_bytes())

    with pytest.raises(ExportError, match="is no valid ONNX file"):
        check_onnx(path)
