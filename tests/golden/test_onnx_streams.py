"""The goldens of whole streams with exported graphs in ONNX Runtime, in this process."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.onnx_export import export_onnx
from streaming.engines import Engine, OrtEngine
from streaming.specs import CachedKeys
from tests.golden.case import GoldenCase
from tests.golden.replays.stream import replay_stream, torch_modules
from tests.golden.replays.stream_cases import StreamCase


class OnnxEngines:
    """Exports the graphs of a set of weights once, whatever the size of the cache."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[tuple[Path, bool], tuple[Engine, Engine]] = {}

    def __call__(self, stream: StreamCase) -> tuple[Engine, Engine]:
        key = (stream.case.weights_path, stream.loop.cached_keys is CachedKeys.UNROTATED)
        if key not in self._known:
            self._known[key] = self._export(stream)
        return self._known[key]

    def _export(self, stream: StreamCase) -> tuple[Engine, Engine]:
        paths = [self._directory / f"{len(self._known)}_{name}.onnx" for name in ("transformer", "text_kv")]
        transformer, text_kv = torch_modules(stream)
        tokens = stream.case.config["tokens_per_frame"]
        sizes = {"F": 3, "T": 3 * tokens, "S": 6 * tokens, "S+T": 9 * tokens}
        export_onnx(transformer, transformer.signature("S"), sizes, paths[0])
        export_onnx(text_kv, text_kv.signature(), {}, paths[1])
        first, second = (OrtEngine(path, threads=1) for path in paths)
        return first, second


@pytest.fixture(scope="session")
def onnx_engines(tmp_path_factory: pytest.TempPathFactory) -> OnnxEngines:
    return OnnxEngines(tmp_path_factory.mktemp("onnx"))


def test_reproduces_the_reference_in_onnx_runtime(stream_case: GoldenCase, onnx_engines: OnnxEngines) -> None:
    case = replace(stream_case, compared=set())  # others compare the same case

    with torch.no_grad():
        replay_stream(case, onnx_engines)

    assert set(case.expected()) <= case.compared
