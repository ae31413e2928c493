"""The reference's numbers once more, from exported files in ONNX Runtime."""

from pathlib import Path

import pytest
import torch

from tests.golden.case import GoldenCase
from tests.golden.exported_cases import REPLAYS, exported_cases
from tests.golden.place import Exported


@pytest.mark.parametrize("exported_case", exported_cases(), ids=str)
def test_an_exported_file_reproduces_the_reference(
    exported_case: GoldenCase, tmp_path: Path, traced_graphs: Path
) -> None:
    with torch.inference_mode():
        REPLAYS[exported_case.kind](exported_case, Exported(tmp_path, traced_graphs))

    assert exported_case.compared >= set(exported_case.expected())
