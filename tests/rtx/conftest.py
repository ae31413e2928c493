"""TensorRT for RTX, whose compiler needs no GPU, and the engines that it compiles."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from export.onnx.jobs import Precision
from export.onnx.run import export_pipeline
from export.onnx.store import EngineStore
from streaming.engines.engine_set import EngineSet
from tests.engines import small_request
from tests.rtx.compiling import Compiler

OpenSet = Callable[[str, Precision], tuple[EngineStore, EngineSet]]
FIRST_PYTHON = (3, 11)  # that ONNX Runtime has packages with this interface for


@pytest.fixture(scope="session")
def compiler(shared_directory: Path) -> Compiler:
    if sys.version_info < FIRST_PYTHON:
        pytest.skip("TensorRT for RTX wants an ONNX Runtime that has no packages for Python 3.10")
    return Compiler.with_stand_ins(shared_directory / "driver_stand_ins")


@pytest.fixture(scope="session")
def small_sets(
    shared_directory: Path, all_engines: Path, bfloat16_engines: tuple[EngineStore, EngineSet]
) -> OpenSet:
    """Opens the small engine set of a pipeline in a precision; the first time, it is exported."""
    store = EngineStore(shared_directory / "rtx_engines")
    with FileLock(shared_directory / "rtx_engines.lock"):
        if not store.root.exists():
            partial = shared_directory / "rtx_engines.partial"
            for source in (all_engines / "engines", bfloat16_engines[0].root):
                shutil.copytree(source, partial, copy_function=_link, dirs_exist_ok=True)
            partial.rename(store.root)

    def opened(pipeline: str, precision: Precision) -> tuple[EngineStore, EngineSet]:
        request = replace(small_request(all_engines / "models", pipeline), precision=precision)
        return store, export_pipeline(request, store, lambda line: None, wait=True)

    return opened


def _link(source: str, target: str) -> None:
    if not os.path.exists(target):
        os.link(source, target)
