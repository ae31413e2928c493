"""Whether a load fits in memory, how, and for how many sessions (serving.md 8.7, decisions.md "Serving")."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.serving import ServingError
from streaming.engine_set import EngineSet
from streaming.errors import WanstreamError
from streaming.host_memory import available_memory
from streaming.manifest import EngineManifest
from streaming.memory_plan import (
    CPU,
    GPU,
    MemoryPlan,
    Placement,
    begun_elsewhere,
    engines_that_make_room,
    memory_plan,
    read_manifests,
)
from streaming.specs import LoopSpec, PipelineSpec
from streaming.units import in_units

logger = logging.getLogger(__name__)

_MOST_SESSIONS = {CPU.memory: 8, GPU.memory: 64}  # however much memory there is


@dataclass(frozen=True, slots=True)
class Fit:
    """How a load goes into memory.

    plan                     while pictures are made
    text_encoder_on_demand   it takes the place of the other engines whenever there is a new prompt
    sessions                 how many streams may run at once; None: nobody can tell
    free                     bytes that there were; None: nobody can tell
    """

    plan: MemoryPlan
    text_encoder_on_demand: bool
    sessions: int | None
    free: int | None

    @property
    def summary(self) -> str:
        """A sentence for people."""
        total, each = in_units(self.plan.total()), in_units(self.plan.per_session)
        need = f"Needs {total} of {self.plan.placement.memory}, {each} of it a session"
        if self.free is None:
            return f"{need}; how much is free is not known."
        swap = " The text encoder takes turns with the other engines." if self.text_encoder_on_demand else ""
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
    most = _MOST_SESSIONS[placement.memory]
    if free is None:
        return Fit(everything, False, most if placement is CPU else None, None)
    if everything.total() <= free:
        return Fit(everything, False, min(most, everything.sessions_in(free)), free)
    others = {name: found for name, found in manifests.items() if name != engines.text_encoder}
    without = memory_plan(engines, others, loop, size, placement)
    elsewhere = begun_elsewhere(engines, manifests, placement)
    models = {name: found for name, found in manifests.items() if name not in elsewhere}
    gone = engines_that_make_room(engines, models)
    beside_it = {name: found for name, found in manifests.items() if name not in gone}
    alone = memory_plan(engines, beside_it, loop, size, placement)
    without.check(free)
    if alone.shared + without.per_session > free:
        everything.check(free)
    beside = (free - alone.shared) // max(1, without.per_session)  # sessions keep their caches meanwhile
    return Fit(without, True, min(most, without.sessions_in(free), beside), free)


class Memory:
    """The memory that engines are loaded into."""

    def __init__(
        self,
        used_and_total: Callable[[], Awaitable[tuple[int, int] | None]],
        *,
        on_cpu: bool,
        limit_bytes: int | None = None,
    ) -> None:
        """used_and_total: of the GPU. on_cpu: engines are in the main memory of this machine instead.

        limit_bytes: what engines and sessions together may take, even if more is free
        """
        self._used_and_total = used_and_total
        self._limit = limit_bytes
        self._placement: Placement = CPU if on_cpu else GPU

    async def fit(
        self, engines: EngineSet, models: Path, spec: PipelineSpec, load_params: Mapping[str, Any]
    ) -> Fit:
        """How this load goes into memory; the plan is logged.

        models: directory of the engines' Triton models. Raises ServingError, with the numbers, when it does
        not fit, or when an engine is not there.
        """
        assert spec.loop is not None, "a pipeline without a loop has no engines"
        size = (load_params["height"], load_params["width"])
        loop = engines.built_for(spec.loop.chosen(load_params))
        try:
            manifests = await asyncio.to_thread(read_manifests, models, engines.engines(size))
            chosen = fit(engines, manifests, loop, size, self._placement, await self._free())
        except WanstreamError as error:
            raise ServingError(str(error)) from error
        for line in chosen.plan.lines():
            logger.info("%s", line)
        return chosen

    async def _free(self) -> int | None:
        """Bytes that a load may take; None: nobody can tell."""
        if self._placement is CPU:
            free = await asyncio.to_thread(available_memory)
        else:
            gpu = await self._used_and_total()
            free = None if gpu is None else gpu[1] - gpu[0]
        known = [size for size in (free, self._limit) if size is not None]
        return min(known, default=None)
