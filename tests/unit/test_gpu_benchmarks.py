"""The benchmarks for a GPU, as far as a CPU can run them, and what they say where there is no GPU."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.common import NO_GPU, cosine, must_agree, relative_rms, table
from benchmarks.gpu.fp8_step import Float8Linear
from export.graphs.layers import Linear

SCRIPTS = ("dit_step", "whole_chunk", "precision", "fp8_step", "nvenc")  # the others start servers or export


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
    assert capsys.readouterr().out.rstrip().endswith("|")


@pytest.mark.parametrize("script", [*SCRIPTS, "triton_copies", "tensorrt_step"])
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
