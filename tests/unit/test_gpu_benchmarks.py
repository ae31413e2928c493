"""The benchmarks for a GPU, as far as a CPU can run them, and what they say where there is no GPU."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.block_graphs import Workload, graphs, random_inputs
from benchmarks.blocks import compiled
from benchmarks.gpu.all import Part
from benchmarks.gpu.common import NO_GPU, cosine, must_agree, relative_rms, table
from benchmarks.gpu.fp8_step import Float8Linear
from benchmarks.random_weights import fill_random
from export.graphs.layers import Linear

# The others start servers or export.
SCRIPTS = ("dit_step", "whole_chunk", "precision", "fp8_step", "nvenc")


def run(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", [script, *arguments])
    importlib.import_module(f"benchmarks.gpu.{script}").main()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_writes_rows_and_prints_a_table(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    try:
        run(script, monkeypatch, "--device", "cpu", "--tiny", "--out", str(tmp_path))
    finally:
        torch.set_num_threads(threads)

    (file,) = tmp_path.glob("gpu-*.json")
    rows = json.loads(file.read_text())["rows"]
    assert rows
    assert not any("error" in row for row in rows if script != "nvenc")
    assert "|\n" in capsys.readouterr().out


@pytest.mark.parametrize("script", [*SCRIPTS, "golden", "triton_copies", "tensorrt_step", "serve"])
def test_without_a_gpu_a_script_says_so(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(SystemExit) as end:
        run(script, monkeypatch)

    assert end.value.code == NO_GPU
    assert "no NVIDIA GPU" in capsys.readouterr().err


def test_what_is_wrong_is_not_timed() -> None:
    right, wrong = torch.ones(8), torch.linspace(-1, 1, 8)

    assert must_agree("it", right, right, 0.99) == pytest.approx(1)
    with pytest.raises(SystemExit, match="it is wrong: cosine"):
        must_agree("it", wrong, right, 0.99)


def test_golden_cases_are_replayed_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as end:
        run("golden", monkeypatch, "--device", "cpu", "--tiny", "--out", str(tmp_path))

    assert end.value.code == 0
    rows = json.loads((tmp_path / "gpu-golden.json").read_text())["rows"]
    assert all(row["tensors"] > 0 and "error" not in row for row in rows)


def test_all_results_come_into_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as end:
        run("all", monkeypatch, "--device", "cpu", "--tiny", "--parts", "dit_step", "--out", str(tmp_path))

    assert end.value.code == 0
    (file,) = tmp_path.glob("*.json")
    document = json.loads(file.read_text())
    assert document["results"]["gpu-dit-step"]["rows"]
    assert [part["exit"] for part in document["parts"]] == [0]
    assert "cosine_to_eager" in file.with_suffix(".log").read_text()


def test_a_script_is_ended_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.all.PARTS", (Part("dit_step", 300), Part("golden", 300)))
    with pytest.raises(SystemExit) as end:
        run("all", monkeypatch, "--device", "cpu", "--limit", "5.5", "--out", str(tmp_path))

    assert end.value.code == 1
    (file,) = tmp_path.glob("*.json")
    assert [part["exit"] for part in json.loads(file.read_text())["parts"]] == ["time is up", "left out"]


def test_a_module_with_compiled_blocks_computes_the_same_and_leaves_the_module_alone() -> None:
    graph = next(g for g in graphs() if g.name == "transformer" and g.size == "tiny")
    work, cpu = Workload(32, 48), torch.device("cpu")
    with torch.device("meta"):
        module = graph.build(graph.layers)
        signature = graph.signature(module, work)
    fill_random(module, torch.float32, cpu)
    inputs = random_inputs(signature, graph.axes(work), torch.float32, cpu)
    before = list(module.modules())

    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        arguments = signature.arguments(inputs)
        found, expected = compiled(module)(**arguments), module(**arguments)

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert list(module.modules()) == before


def test_measures_of_error() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]) * 1.1

    assert cosine(a, b) == pytest.approx(1)
    assert relative_rms(b, a) == pytest.approx(0.1)
    assert table([{"a": 1.23456, "kernels": ["x"]}, {"b": None}]).splitlines()[2:] == [
        "| 1.235 |  |",
        "|  |  |",
    ]


def test_a_float8_layer_is_close_to_the_layer() -> None:
    linear = Linear(64, 32)
    generator = torch.Generator().manual_seed(0)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x: Tensor = torch.randn(2, 5, 64, generator=generator)

    with torch.inference_mode():
        found = Float8Linear(linear)(x)
        exact = linear(x)

    assert found.shape == exact.shape
    assert relative_rms(found, exact) < 0.06
    assert not torch.equal(found, exact)
