"""From the body of a load request to an accepted load."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.errors import ApiError
from gateway.pipelines.load_params import LoadContext, LoadRequest, find_lora, parse_load_request
from gateway.pipelines.state import Pipelines
from gateway.serving.interface import ServingError

_GIB = 1 << 30


class LoadService:
    """Checks load requests and hands them to the state machine."""

    def __init__(self, pipelines: Pipelines, lora_directories: list[Path]) -> None:
        self._pipelines = pipelines
        self._lora_directories = lora_directories
        self._checking = asyncio.Lock()

    def loras_in_use(self) -> list[Path]:
        """LoRA files of what is loaded or on its way; they must not be deleted."""
        files = []
        for params in self._pipelines.params_in_use():
            for lora in params.get("loras") or ():
                with contextlib.suppress(ApiError):  # the file is gone already
                    files.append(find_lora(lora["path"], self._lora_directories))
        return files

    async def request(self, body: Mapping[str, Any], *, refusal: ApiError | None = None) -> dict[str, Any]:
        """Accept a load and return the answer's body; the status shows it from then on.

        refusal: what to raise when something would change; None: the client may change it.
        Raises ApiError and ValidationFailed; what is loaded stays as it is then.
        """
        await self._pipelines.serving.verify()  # else an equal request might be answered from memory
        async with self._checking:  # the newest request wins, so none may overtake another
            request = parse_load_request(body, await self._context())
            if refusal is not None:
                request = self._as_held(request, refusal)
            await self._check(request)
            state = self._pipelines.request_load(request)
        return {
            "message": "Pipeline loading initiated successfully",
            "status": state.value,
            "pipeline_id": request.spec.id,
            "pipeline_ids": [request.spec.id],
            "load_params": request.params,
            "warnings": request.warnings,
        }

    def _as_held(self, request: LoadRequest, refusal: ApiError) -> LoadRequest:
        """The same with what nobody chose as it is here; `refusal` is raised when that is something else."""
        held = self._pipelines.held
        if held is None or held.spec.id != request.spec.id:
            raise refusal
        if any(held.params.get(name) != request.params.get(name) for name in request.chosen):
            raise refusal
        return replace(request, params=held.params)

    async def _context(self) -> LoadContext:
        serving = self._pipelines.serving
        memory = await serving.gpu_memory_bytes() if serving.on_gpu else None
        return LoadContext(
            availability=serving.availability,
            lora_directories=self._lora_directories,
            vram_gib=None if memory is None else memory[1] / _GIB,
        )

    async def _check(self, request: LoadRequest) -> None:
        """Refuse what cannot be loaded before anything that runs is touched. Raises ApiError."""
        if self._pipelines.state_of(request) is None:
            try:
                await self._pipelines.serving.check(request.spec, request.params)
            except ServingError as error:
                raise ApiError(400, f"{request.spec.id} cannot be loaded: {error}") from error
