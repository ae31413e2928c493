"""Every wire-level case of the specification against a real server."""

import json
from pathlib import Path

import pytest

from tests.server.case_runner import CaseRunner
from tests.server.cases import CASES_FILE, Case, load_cases
from tests.server.conftest import CaseServers
from tests.server.expectations import CaseError
from tests.server.not_yet import NOT_YET

CASES = load_cases()
SPECIFICATION = Path(__file__).parents[3] / "shared" / "spec" / "api_cases.json"


@pytest.mark.parametrize("case", [c for c in CASES if c.id not in NOT_YET], ids=str)
async def test_case_holds(case: Case, case_servers: CaseServers) -> None:
    await CaseRunner(case_servers.for_case(case)).run(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.id in NOT_YET], ids=str)
async def test_case_that_waits_for_a_later_issue_really_fails(case: Case, case_servers: CaseServers) -> None:
    runner = CaseRunner(case_servers.for_case(case))

    with pytest.raises(CaseError):
        await runner.run(case)


def test_waiting_cases_exist() -> None:
    assert NOT_YET.keys() <= {case.id for case in CASES}


def test_case_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES) == 232


def test_cases_are_those_of_the_specification() -> None:
    source = SPECIFICATION if SPECIFICATION.exists() else CASES_FILE

    assert json.loads(CASES_FILE.read_text()) == json.loads(source.read_text())
