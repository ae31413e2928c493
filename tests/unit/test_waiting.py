"""Waiting with a time limit."""

import asyncio

import pytest

from gateway.waiting import to_the_end, within


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

    await asyncio.wait_for(ended.wait(), 30)


class Stubborn:
    """Work that needs many turns of the event loop to end once it is cancelled."""

    def __init__(self) -> None:
        self.ended = False

    async def work(self) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await to_the_end(self._clean_up())

    async def _clean_up(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)
        self.ended = True


async def test_work_has_ended_when_the_time_limit_is_told() -> None:
    stubborn = Stubborn()

    with pytest.raises(asyncio.TimeoutError):
        await within(stubborn.work(), 0.01)

    assert stubborn.ended


@pytest.mark.parametrize("cancellations", [1, 2, 3])
@pytest.mark.parametrize("apart", [0, 1, 7])
async def test_work_has_ended_when_the_waiting_task_has_however_often_that_is_cancelled(
    cancellations: int, apart: int
) -> None:
    stubborn = Stubborn()
    task = asyncio.create_task(within(stubborn.work(), 60))
    await asyncio.sleep(0.01)

    for _ in range(cancellations):
        task.cancel()
        for _ in range(apart):
            await asyncio.sleep(0)
    await asyncio.wait({task})

    assert task.cancelled()
    assert stubborn.ended


async def test_a_result_that_comes_in_spite_of_the_time_limit_counts() -> None:
    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    assert await within(work(), 0.01) == "done all the same"


async def test_an_error_while_late_work_ends_is_the_cause_of_the_timeout() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("broken")

    with pytest.raises(asyncio.TimeoutError) as caught:
        await within(work(), 0.01)

    assert isinstance(caught.value.__cause__, ValueError)
