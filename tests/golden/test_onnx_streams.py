"""The goldens of whole streams with exported graphs in ONNX Runtime, in this process."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.golden.case import GoldenCase
from tests.golden.replays.exported_stream import ExportedStreams
from tests.golden.replays.stream import replay_stream


@pytest.fixture(scope="session")
def exported_streams(tmp_path_factory: pytest.TempPathFactory, traced_graphs: Path) -> ExportedStreams:
    return ExportedStreams(tmp_path_factory.mktemp("onnx"), traced_graphs)


@pytest.mark.timeout(600)  # the first of a shape is traced
def test_reproduces_the_reference_in_onnx_runtime(
    stream_case: GoldenCase, exported_streams: ExportedStreams
) -> None:
    case = replace(stream_case, compared=set())  # others compare the same case

    with torch.no_grad():
        replay_stream(case, exported_streams)

    assert set(case.expected()) <= case.compared
