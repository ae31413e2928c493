"""The reference's numbers once more: exported files in ONNX Runtime, and the form of graphs for the CPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.golden.case import GoldenCase
from tests.golden.exported_cases import REPLAYS, exported_cases
from tests.golden.place import Exported
from tests.golden.replays.vae import CpuForm


@pytest.mark.parametrize("exported_case", exported_cases(), ids=str)
def test_an_exported_file_reproduces_the_reference(
    exported_case: GoldenCase, tmp_path: Path, traced_graphs: Path
) -> None:
    with torch.inference_mode():
        REPLAYS[exported_case.kind](exported_case, Exported(tmp_path, traced_graphs))

    assert exported_case.compared >= set(exported_case.expected())


@pytest.mark.parametrize(
    "exported_case", [case for case in exported_cases() if case.kind.startswith("wan.vae_")], ids=str
)
def test_an_autoencoder_in_the_form_for_the_cpu_reproduces_the_reference(exported_case: GoldenCase) -> None:
    case = replace(exported_case, compared=set())  # another test compares the same case

    with torch.inference_mode():
        REPLAYS[case.kind](case, CpuForm())

    assert case.compared >= set(case.expected())
