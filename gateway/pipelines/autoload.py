"""The pipeline that a server has without being asked: loaded at the start, and kept loaded."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from gateway.errors import ApiError, ValidationFailed
from gateway.pipelines.load_service import LoadService
from gateway.pipelines.state import Pipelines, State
from gateway.waiting import end

logger = logging.getLogger(__name__)

_BACKOFF_S = (0.5, 2.0, 5.0, 10.0, 30.0)


class Autoload:
    """Loads a pipeline as if a client had asked for it; with `keep` again after a loss or a failure.

    After a loss it is whatever was loaded, by whomever. An unload that somebody asked for is respected.
    """

    def __init__(
        self,
        pipelines: Pipelines,
        loader: LoadService,
        pipeline_id: str,
        params: Mapping[str, Any] | None = None,
        *,
        keep: bool,
    ) -> None:
        """params: load parameters as a client would send them."""
        self._pipelines = pipelines
        self._loader = loader
        self._id = pipeline_id
        self._params = params
        self._keep = keep
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask for the pipeline, and go on in the background."""
        await self._load()
        if self._keep:
            self._task = asyncio.create_task(self._run(), name="autoload")

    async def close(self) -> None:
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        failures = 0
        while True:
            if await self._pipelines.wait_for(State.LOADED, State.ERROR) is State.LOADED:
                failures = 0
            await self._pipelines.wait_for(State.ERROR)
            pause_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            failures += 1
            logger.info("Pipeline %s is loaded again in %.1f s", self._id, pause_s)
            await asyncio.sleep(pause_s)
            if self._pipelines.state is State.ERROR and not self._pipelines.load_lost():
                await self._load()

    async def _load(self) -> None:
        try:
            await self._loader.request({"pipeline_id": self._id, "load_params": self._params})
        except (ApiError, ValidationFailed) as error:
            logger.error("The pipeline to begin with, %s, cannot be loaded: %s", self._id, error)
            self._pipelines.reject(str(error))
        except Exception:  # task boundary: without this task nobody tries again
            logger.exception("The pipeline to begin with, %s, cannot be loaded", self._id)
            self._pipelines.reject("internal error, see the server's log")
