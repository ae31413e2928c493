"""Waiting with a time limit and to the end, in tasks that may be cancelled at any moment."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def within(work: Awaitable[T], timeout_s: float | None) -> T:
    """`asyncio.wait_for` whose cancellation is never lost; None: no limit.

    Before Python 3.12 `wait_for` drops a cancellation that comes at the moment the work is done
    (python/cpython#86296): a loop around it goes on, and whoever cancelled it waits for ever.

    The work has ended when this returns or raises, what it does when it is cancelled included. A result that
    it has all the same, after the limit, is returned.

    Raises asyncio.TimeoutError.
    """
    if timeout_s is None:
        return await work
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    finally:
        await end(task)
    if not done and (task.cancelled() or task.exception() is not None):
        raise asyncio.TimeoutError from None if task.cancelled() else task.exception()
    return task.result()


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work` until it is done, however often this task is cancelled; a cancellation comes after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from None if task.cancelled() else task.exception()
    return task.result()


async def end(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel tasks and wait until all have ended, however they do."""
    running = {task for task in tasks if not task.done()}
    for task in running:
        task.cancel()
    try:
        if running:
            await to_the_end(asyncio.wait(running))
    finally:
        for task in tasks:
            if not task.cancelled():
                task.exception()  # else asyncio complains that nobody looked at it
