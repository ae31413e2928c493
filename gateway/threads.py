"""Threads for work that would block the event loop, in groups that cannot hold each other up.

`asyncio.to_thread` and name look-ups share the loop's default executor: name servers that are silent would
stop all work on files. Here the default executor is one that keeps them apart; pictures, encoders and checks
of parameters have threads of their own.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_WORKERS = min(32, (os.cpu_count() or 1) + 4)  # as in the library's own executor
_LOOKUPS = 8
_PARAMETERS = 4

# They live as long as the process, and their threads begin with the first work.
_media = ThreadPoolExecutor(_WORKERS, "media")
_encoders = ThreadPoolExecutor(os.cpu_count() or 1, "encoder")
_lookups = ThreadPoolExecutor(_LOOKUPS, "lookup")
_parameters = ThreadPoolExecutor(_PARAMETERS, "parameters")


class SeparatingExecutor(ThreadPoolExecutor):
    """The loop's default executor: files here; name look-ups in threads of their own."""

    def __init__(self) -> None:
        super().__init__(_WORKERS, "files")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        is_lookup = any(fn is each for each in (socket.getaddrinfo, socket.getnameinfo))
        return (_lookups.submit if is_lookup else super().submit)(fn, *args, **kwargs)


def separate_threads() -> None:
    """Keep files and look-ups apart on the running loop."""
    asyncio.get_running_loop().set_default_executor(SeparatingExecutor())


async def in_media_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for work on pictures."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_media, lambda: work(*args, **kwargs))


async def in_encoder_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for the encoding of one picture."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_encoders, lambda: work(*args, **kwargs))


async def in_parameter_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for checks of parameters, which look for files and read their headers."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_parameters, lambda: work(*args, **kwargs))
