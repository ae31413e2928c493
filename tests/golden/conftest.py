"""Finds the golden cases for the tests that replay them."""

import pytest

from tests.golden.case import GoldenCase, discover, golden_directory
from tests.golden.registry import must_wait

CASES = pytest.StashKey[list[GoldenCase]]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `case` with every case that can be replayed, or whose kind nobody knows; `stream_case` with
    the streams among them."""
    wanted = {"case", "stream_case"} & set(metafunc.fixturenames)
    for name in wanted:
        cases = [case for case in all_cases(metafunc.config) if not must_wait(case)]
        if not cases:
            raise pytest.UsageError(f"None of the cases in '{golden_directory()}' can be replayed yet.")
        streams = [case for case in cases if case.kind == "stream"]
        metafunc.parametrize(name, cases if name == "case" else streams, ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop the tests for whose kinds the directory has no case; pytest would count them as skipped."""
    empty = [
        item
        for item in items
        if any("empty parameter set" in m.kwargs.get("reason", "") for m in item.iter_markers("skip"))
    ]
    if empty:
        config.hook.pytest_deselected(items=empty)
        items[:] = [item for item in items if item not in empty]


def all_cases(config: pytest.Config) -> list[GoldenCase]:
    if CASES not in config.stash:
        try:
            config.stash[CASES] = discover(golden_directory())
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
    return config.stash[CASES]
