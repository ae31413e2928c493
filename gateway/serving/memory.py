"""The memory that loads go into, as far as it can be known (serving.md 8.7, decisions.md "Serving")."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from gateway.serving.interface import ServingError
from streaming.errors import WanstreamError
from streaming.memory.fit import Fit
from streaming.memory.host_memory import available_memory

logger = logging.getLogger(__name__)


class Load(Protocol):
    """What is going to be loaded, as far as memory asks."""

    @property
    def on_gpu(self) -> bool:
        """Whether it goes into a GPU's memory."""

    def fit(self, free: int | None, free_on_cpu: int | None) -> Fit:
        """How it goes into so many bytes. Raises DoesNotFitError.

        free_on_cpu: of the machine, for a load on a GPU. None: nobody can tell.
        """


class Memory:
    """The memory of a GPU and of the machine."""

    def __init__(
        self,
        used_and_total: Callable[[], Awaitable[tuple[int, int] | None]],
        *,
        on_cpu: bool,
        limit_bytes: int | None = None,
    ) -> None:
        """used_and_total: of the GPU. on_cpu: Triton runs on this machine, without a GPU.

        limit_bytes: what engines and sessions together may take, even if more is free
        """
        self._used_and_total = used_and_total
        self._limit = limit_bytes
        self._on_cpu = on_cpu
        self._newest: Fit | None = None
        self._free_before: int | None = None  # the newest load

    async def fit(self, load: Load) -> Fit:
        """How this load goes into memory; the numbers are logged.

        Raises ServingError, with the numbers, when it does not fit.
        """
        free = await self._free(load.on_gpu)
        chosen = _fit(load, self._capped(free), await self._beside(load.on_gpu))
        self._newest, self._free_before = chosen, free
        for line in chosen.plan.lines():
            logger.info("%s", line)
        return chosen

    async def check(self, load: Load, *, in_use: bool) -> None:
        """Raises ServingError, with the numbers, unless this load will fit.

        in_use: the newest load is in memory, and will be gone by then
        """
        _fit(load, *await self.free(load.on_gpu, in_use=in_use))

    async def free(self, on_gpu: bool, *, in_use: bool) -> tuple[int | None, int | None]:
        """Bytes that a load may take, and those of the machine beside a GPU; None: nobody can tell.

        in_use: as of `check`
        """
        free = await self._free(on_gpu)
        if in_use and free is not None:
            free += self._taken(on_gpu, free)
        return self._capped(free), await self._beside(on_gpu)

    def _capped(self, free: int | None) -> int | None:
        return min((size for size in (free, self._limit) if size is not None), default=None)

    def _taken(self, on_gpu: bool, free: int) -> int:
        """Bytes of what is loaded: what has gone since before it was, as far as that can be its own."""
        newest = self._newest
        if newest is None or self._free_before is None or newest.plan.placement.on_gpu != on_gpu:
            return 0
        return max(0, min(self._free_before - free, newest.plan.total(newest.sessions or 1)))

    async def _free(self, on_gpu: bool) -> int | None:
        """Bytes that nobody takes now; None: nobody can tell."""
        if on_gpu:
            gpu = await self._used_and_total()
            return None if gpu is None else gpu[1] - gpu[0]
        return await asyncio.to_thread(available_memory) if self._on_cpu else None

    async def _beside(self, on_gpu: bool) -> int | None:
        """Free memory of the machine, for a load on a GPU that may leave a part there."""
        return await self._free(on_gpu=False) if on_gpu else None


def _fit(load: Load, free: int | None, free_on_cpu: int | None) -> Fit:
    try:
        return load.fit(free, free_on_cpu)
    except WanstreamError as error:
        raise ServingError(str(error)) from error
