"""Whether a load fits in memory, how, and for how many sessions (serving.md 8.7, decisions.md "Serving")."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from gateway.serving.interface import ServingError
from gateway.serving.load_plans import placement_of
from streaming.engines.engine_set import EngineSet
from streaming.engines.host_memory import available_memory
from streaming.engines.load_plan import LoadPlan
from streaming.engines.manifest import EngineManifest
from streaming.engines.memory_plan import GPU, MemoryPlan, Placement, memory_plan
from streaming.engines.units import in_units
from streaming.errors import WanstreamError
from streaming.specs import LoopSpec, PipelineSpec

logger = logging.getLogger(__name__)

_MOST_SESSIONS, _MOST_ON_GPU = 8, 64  # however much memory there is


@dataclass(frozen=True, slots=True)
class Fit:
    """How a load goes into memory.

    plan        while pictures are made
    make_room   engines whose place the text encoder takes whenever there is a new prompt; none: it is always
                there
    sessions    how many streams may run at once; None: nobody can tell
    free        bytes that there were; None: nobody can tell
    """

    plan: MemoryPlan
    make_room: tuple[str, ...]
    sessions: int | None
    free: int | None

    @property
    def summary(self) -> str:
        """A sentence for people."""
        total, each = in_units(self.plan.total()), in_units(self.plan.per_session)
        need = f"Needs {total} of {self.plan.placement.memory}, {each} of it a session"
        if self.free is None:
            return f"{need}; how much is free is not known."
        swap = " The text encoder takes turns with the other engines." if self.make_room else ""
        return f"{need}; {in_units(self.free)} are free: room for {self.sessions} session(s).{swap}"


def fit(
    engines: EngineSet,
    manifests: Mapping[str, EngineManifest],
    loop: LoopSpec,
    size: tuple[int, int],
    placement: Placement,
    free: int | None,
) -> Fit:
    """Keep everything in memory if at least one session has room then, else swap the text encoder in and out.

    manifests: of all engines of this size in pixels. free: bytes; None: nobody can tell.
    Raises DoesNotFitError, with the numbers, when neither has room.
    """
    everything = memory_plan(engines, manifests, loop, size, placement)
    most = _MOST_ON_GPU if placement is GPU else _MOST_SESSIONS
    if free is None:
        return Fit(everything, (), None if placement is GPU else most, None)
    if everything.total() <= free:
        return Fit(everything, (), min(most, everything.sessions_in(free)), free)
    encoder = engines.text_encoder
    others = {name: found for name, found in manifests.items() if name != encoder}
    without = memory_plan(engines, others, loop, size, placement)
    alone = memory_plan(engines, {encoder: manifests[encoder]}, loop, size, placement)
    without.check(free)
    if alone.shared + without.per_session > free:
        everything.check(free)
    beside = (free - alone.shared) // max(1, without.per_session)  # sessions keep their caches meanwhile
    return Fit(without, tuple(others), min(most, without.sessions_in(free), beside), free)


class Memory:
    """The memory that engines are loaded into."""

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

    async def fit(
        self, engines: EngineSet, manifests: Mapping[str, EngineManifest], spec: PipelineSpec, plan: LoadPlan
    ) -> Fit:
        """How this load goes into memory, what is decided about it being `plan`; the numbers are logged.

        manifests: of all engines of the size, by name. Raises ServingError, with the numbers, when it does
        not fit.
        """
        free = await self._free(placement_of(plan))
        chosen = self._fit(engines, manifests, spec, plan, free)
        self._newest, self._free_before = chosen, free
        for line in chosen.plan.lines():
            logger.info("%s", line)
        return chosen

    async def check(
        self,
        engines: EngineSet,
        manifests: Mapping[str, EngineManifest],
        spec: PipelineSpec,
        plan: LoadPlan,
        *,
        in_use: bool,
    ) -> None:
        """Raises ServingError, with the numbers, unless this load will fit. Arguments as of `fit`.

        in_use: the newest load is in memory, and will be gone by then
        """
        placement = placement_of(plan)
        free = await self._free(placement)
        if in_use and free is not None:
            free += self._taken(placement, free)
        self._fit(engines, manifests, spec, plan, free)

    def _fit(
        self,
        engines: EngineSet,
        manifests: Mapping[str, EngineManifest],
        spec: PipelineSpec,
        plan: LoadPlan,
        free: int | None,
    ) -> Fit:
        assert spec.loop is not None, "a pipeline without a loop has no engines"
        loop = engines.built_for(spec.loop.chosen(plan.loop))
        known = [size for size in (free, self._limit) if size is not None]
        try:
            return fit(engines, manifests, loop, plan.size, placement_of(plan), min(known, default=None))
        except WanstreamError as error:
            raise ServingError(str(error)) from error

    def _taken(self, placement: Placement, free: int) -> int:
        """Bytes of what is loaded: what has gone since before it was, as far as that can be its own."""
        newest = self._newest
        if newest is None or self._free_before is None:
            return 0
        if (newest.plan.placement is GPU) != (placement is GPU):
            return 0
        return max(0, min(self._free_before - free, newest.plan.total(newest.sessions or 1)))

    async def _free(self, placement: Placement) -> int | None:
        """Bytes that nobody takes now; None: nobody can tell."""
        if placement is GPU:
            gpu = await self._used_and_total()
            return None if gpu is None else gpu[1] - gpu[0]
        return await asyncio.to_thread(available_memory) if self._on_cpu else None
