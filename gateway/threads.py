"""Threads for work that would block the event loop, in groups that cannot hold each other up.

aiortc encodes in the loop's default executor, and so do `asyncio.to_thread` and name look-ups: six hashes of
large files, or a name server that is silent, would stop every picture. Here the default executor is one that
keeps them apart.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_WORKERS = min(32, (os.cpu_count() or 1) + 4)  # as in the library's own executor
_LOOKUPS = 8
_PARAMETERS = 4

# They live as long as the process, and their threads begin with the first work.
_media = ThreadPoolExecutor(_WORKERS, "media")
_lookups = ThreadPoolExecutor(_LOOKUPS, "lookup")
_parameters = ThreadPoolExecutor(_PARAMETERS, "parameters")


class SeparatingExecutor(ThreadPoolExecutor):
    """The loop's default executor: files here; encoders and name look-ups in threads of their own."""

    def __init__(self, encoder: type) -> None:
        super().__init__(_WORKERS, "files")
        self._encoder = encoder

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        chosen = self._separate(fn)
        return chosen.submit(fn, *args, **kwargs) if chosen else super().submit(fn, *args, **kwargs)

    def _separate(self, work: Callable[..., Any]) -> Executor | None:
        if isinstance(getattr(work, "__self__", None), self._encoder):
            return _media
        return _lookups if work in (socket.getaddrinfo, socket.getnameinfo) else None


def separate_threads(encoder: type) -> None:
    """Keep pictures, files and look-ups apart on the running loop. encoder: base class of the encoders."""
    asyncio.get_running_loop().set_default_executor(SeparatingExecutor(encoder))


async def in_media_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for work on pictures."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_media, lambda: work(*args, **kwargs))


async def in_parameter_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for checks of parameters, which look for files and read their headers."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_parameters, lambda: work(*args, **kwargs))
