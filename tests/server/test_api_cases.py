"""Every wire-level case of the specification against a real server."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from tests.server.case_runner import CaseRunner
from tests.server.cases import CASES_FILE, Case, load_cases
from tests.server.conftest import CaseServers
from tests.server.expectations import CaseError
from tests.server.not_yet import NOT_YET
from tests.server.online import Online

CASES = load_cases()
SPECIFICATION = Path(__file__).parents[3] / "shared" / "spec" / "api_cases.json"
SPECIFIED = "ee7cf37bf0597c213f04ebe47606e6ba0ea8281656ab999304bf4c60f41e8242"  # sha256


async def run(case: Case, case_servers: CaseServers) -> None:
    """Run a case on the server it needs, with the services on the internet it needs."""
    async with Online(case) as online:
        env = case.env | online.env
        server = await asyncio.to_thread(case_servers.with_env, env)
        await CaseRunner(server).run(case)
        online.assert_asked(case.env.get("HF_TOKEN"))


@pytest.mark.parametrize("case", [c for c in CASES if c.id not in NOT_YET], ids=str)
async def test_case_holds(case: Case, case_servers: CaseServers) -> None:
    await run(case, case_servers)


@pytest.mark.parametrize("case", [c for c in CASES if c.id in NOT_YET], ids=str)
async def test_case_that_waits_for_a_later_issue_really_fails(case: Case, case_servers: CaseServers) -> None:
    with pytest.raises(CaseError):
        await run(case, case_servers)


def test_waiting_cases_exist() -> None:
    assert NOT_YET.keys() <= {case.id for case in CASES}


def test_case_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES) == 232


@pytest.mark.parametrize("path", [path for path in (CASES_FILE, SPECIFICATION) if path.exists()], ids=str)
def test_cases_are_those_of_the_specification(path: Path) -> None:
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SPECIFIED
