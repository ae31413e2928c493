"""What tests of several kinds share."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from export.onnx.run import export_pipeline
from export.onnx.store import EngineStore
from streaming.engines.engine_set import EngineSet, read_engine_set
from tests.engines import export_all, export_small, small_request
from tests.golden.case import discover, golden_directory
from tests.golden.registry import must_wait

# A deadline would judge how busy the machine is.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

GOLDEN = "tests/golden/"


def pytest_configure(config: pytest.Config) -> None:
    """The models are tiny and several processes run: more threads cost time, here and in what tests start."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]  # everything that is asked is on this machine
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def numbers_near_zero() -> None:
    """An ONNX Runtime session makes its thread take them for zero, which Hypothesis refuses to work with."""
    torch.set_flush_denormal(False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How `pytest -n` spreads the tests."""
    from tests.spread import Spread  # only a run with pytest-xdist needs it

    return Spread(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the golden cases that nothing replays yet, if golden tests ran here or in another process."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    if not any(getattr(report, "nodeid", "").startswith(GOLDEN) for report in reports):
        return
    waiting = [case for case in discover(golden_directory()) if must_wait(case)]
    terminalreporter.section(f"golden cases not yet replayed: {len(waiting)}")
    for case in waiting:
        terminalreporter.write_line(f"{case} ({case.kind})")


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A directory that all processes of this run have in common. What is slow to make is made once in it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(scope="session")
def exported_engines(shared_directory: Path) -> tuple[Path, EngineSet]:
    """A small LongLive, exported once: directory of `models` (checkpoints) and `engines`. Never change it.

    It can be the home directory of a server.
    """
    root = shared_directory / "exported"
    with FileLock(shared_directory / "exported.lock"):
        sets = EngineStore(root / "engines").sets
        if not list(sets.glob("*")):
            export_small(root)
    (engine_set,) = map(read_engine_set, sets.iterdir())
    return root, engine_set


@pytest.fixture(scope="session")
def bfloat16_engines(
    shared_directory: Path, exported_engines: tuple[Path, EngineSet]
) -> tuple[EngineStore, EngineSet]:
    """The small LongLive in bfloat16, exported once, beside the float32 one whose autoencoder it shares."""
    store = EngineStore(shared_directory / "exported_bf16")
    with FileLock(shared_directory / "exported_bf16.lock"):
        if not store.root.exists():
            shutil.copytree(exported_engines[0] / "engines", store.root)
        request = replace(small_request(exported_engines[0] / "models"), precision="bf16")
        return store, export_pipeline(request, store, lambda line: None)


@pytest.fixture(scope="session")
def traced_graphs(shared_directory: Path) -> Path:
    """A directory for the graphs of stream goldens: tracing takes most of the time of their tests."""
    directory = shared_directory / "traced"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def all_engines(shared_directory: Path, exported_engines: tuple[Path, EngineSet]) -> Path:
    """A directory like that of `exported_engines`, with engines of every pipeline that can be exported."""
    root = shared_directory / "all_exported"
    with FileLock(shared_directory / "all_exported.lock"):
        if not root.exists():
            partial = shared_directory / "all_exported.partial"
            shutil.rmtree(partial, ignore_errors=True)
            export_all(exported_engines[0], partial)
            partial.rename(root)
    return root
