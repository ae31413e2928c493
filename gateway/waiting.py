"""Waiting with a time limit, in loops that must end when their task is cancelled."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(work: Awaitable[T], timeout_s: float | None) -> T:
    """`asyncio.wait_for` whose cancellation is never lost; None: no limit.

    Before Python 3.12 `wait_for` drops a cancellation that comes at the moment the work is done
    (python/cpython#86296): a loop around it goes on, and whoever cancelled it waits for ever.

    Raises asyncio.TimeoutError.
    """
    if timeout_s is None:
        return await work
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


async def unless_before_first(stop: asyncio.Event, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`items`, of which there is one at least; none if `stop` is set before the first: that is cancelled.

    `items` are closed when this ends, however it ends; else they would be when the garbage is collected.
    """
    async with contextlib.aclosing(items):
        first, stopped = asyncio.ensure_future(anext(items)), asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({first, stopped}, return_when=asyncio.FIRST_COMPLETED)
            came = first.done()
        finally:
            for task in (first, stopped):
                task.cancel()
            await asyncio.gather(first, stopped, return_exceptions=True)
        if came:
            yield first.result()
            async for item in items:
                yield item
