"""The soak of `tests.soak`, as short as it can say anything."""

from pathlib import Path

import pytest

from tests.server.double_process import DoubleProcess
from tests.soak import Rest, judge, soak


@pytest.mark.timeout(300)
async def test_viewers_who_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    server = DoubleProcess(tmp_path)
    try:
        rests = await soak(server, seconds=0, round_s=6, seed=1)
    finally:
        server.stop(within_s=30.0)

    assert judge(rests) == []
    assert "Traceback" not in server.log


def test_growth_is_noticed() -> None:
    rest = Rest(1, tasks=10, sockets=2, files=20, threads=12, memory_mb=200)
    grown = Rest(2, tasks=11, sockets=3, files=30, threads=40, memory_mb=260)

    assert judge([rest, rest, rest]) == []
    assert [problem.partition(":")[0] for problem in judge([rest, rest, grown])] == [
        *("tasks", "sockets", "files", "threads", "memory"),
    ]
