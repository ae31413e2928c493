"""The benchmark of served checkpoints, as far as a machine without a GPU runs it."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import serve
from streaming.engines.load_plan import TorchSwitches


@pytest.mark.timeout(200)
def test_a_small_checkpoint_is_streamed_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--tiny", "--seconds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["serve", *arguments])

    serve.main()

    (row,) = json.loads((tmp_path / "gpu-serve.json").read_text())["rows"]
    assert "error" not in row
    assert (row["picture"], row["vae"], row["precision"]) == ("80x64", "wan", "fp32")
    assert row["fps"] > 0
    for name in ("chunk_p50_ms", "denoise_ms", "decode_ms", "first_picture_new_prompt_ms", "planned_mb"):
        assert row[name] > 0
    assert "|\n" in capsys.readouterr().out


def test_every_switch_is_turned_over_alone_in_a_case_of_its_own() -> None:
    turned = [case.turned for case in serve.CASES if case.turned]

    assert turned == [(name,) for name in TorchSwitches.model_fields]
    assert serve.Case((64, 80), "tae", ("fused",)).env == {"WANSTREAM_PYTORCH_FUSED": "on"}
    assert serve.Case((64, 80), "tae", ("cuda_graph",)).env == {"WANSTREAM_PYTORCH_CUDA_GRAPH": "off"}
