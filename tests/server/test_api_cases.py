"""Every wire-level case of the specification against a real server."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from tests.server.case_runner import CaseRunner
from tests.server.cases import CASES_FILE, Case, load_cases
from tests.server.conftest import CaseServers
from tests.server.online import Online

CASES = load_cases()
SPECIFICATION = Path(__file__).parents[3] / "shared" / "spec" / "api_cases.json"
SPECIFIED = "ee7cf37bf0597c213f04ebe47606e6ba0ea8281656ab999304bf4c60f41e8242"  # sha256


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_case_holds(case: Case, case_servers: CaseServers) -> None:
    async with Online(case) as online:
        server = await asyncio.to_thread(case_servers.with_env, case.env | online.env)

        await CaseRunner(server).run(case)

        online.assert_asked(case.env.get("HF_TOKEN"))


def test_case_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES) == 232


@pytest.mark.parametrize("path", [path for path in (CASES_FILE, SPECIFICATION) if path.exists()], ids=str)
def test_cases_are_those_of_the_specification(path: Path) -> None:
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SPECIFIED
