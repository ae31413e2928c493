"""Waiting with a time limit."""

import asyncio

import pytest

from gateway.waiting import within


@pytest.mark.parametrize("steps_apart", range(5))
async def test_cancelled_loop_ends_also_when_the_work_is_done_at_that_moment(steps_apart: int) -> None:
    event = asyncio.Event()

    async def loop() -> None:
        while True:
            await within(event.wait(), 60)
            event.clear()

    task = asyncio.create_task(loop())
    await asyncio.sleep(0.01)

    event.set()
    for _ in range(steps_apart):
        await asyncio.sleep(0)
    task.cancel()
    ended, _ = await asyncio.wait({task}, timeout=5)

    assert ended == {task}


async def test_result_is_passed_on() -> None:
    assert await within(asyncio.sleep(0, "done"), 60) == "done"


async def test_time_limit_ends_the_work() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(asyncio.TimeoutError):
        await within(work(), 0.01)

    await asyncio.wait_for(ended.wait(), 5)
