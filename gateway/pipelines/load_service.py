"""From the body of a load request to an accepted load."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.errors import ApiError
from gateway.http.validation import quoted
from gateway.pipelines.load_params import LoadContext, LoadRequest, find_lora, parse_load_request
from gateway.pipelines.state import Loaded, NothingLoaded, Pipelines
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
        in_use = self._pipelines.params_in_use()
        return [file for params in in_use for file in self._files(params.get("loras") or ())]

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

    async def add_lora(self, path: str, scale: float) -> list[dict[str, Any]]:
        """Put a LoRA file beside the weights of what is loaded; returns all that are loaded.

        Raises ApiError: 400 for a file that cannot be used, 409 while nothing is loaded.
        """
        file = find_lora(path, self._lora_directories)

        def added(loaded: Loaded) -> list[dict[str, Any]]:
            loras = list(loaded.params.get("loras") or ())
            if path in {entry["path"] for entry in loras} or file in self._files(loras):
                raise ApiError(400, f"LoRA '{quoted(path, 200)}' (duplicate): it is loaded already.")
            return [*loras, {"path": path, "scale": scale, "merge_mode": "runtime_peft"}]

        return await self._adapted(added)

    async def remove_lora(self, path: str) -> list[dict[str, Any]]:
        """Take a LoRA file away from what is loaded; returns those that stay.

        Raises ApiError: 404 for one that is not loaded, 400 for one that is merged into the weights, 409
        while nothing is loaded.
        """

        def without(loaded: Loaded) -> list[dict[str, Any]]:
            loras = list(loaded.params.get("loras") or ())
            found = next((entry for entry in loras if entry["path"] == path), None)
            if found is None:
                raise ApiError(404, f"LoRA '{quoted(path, 200)}' is not loaded.")
            if found["merge_mode"] != "runtime_peft":
                raise ApiError(
                    400,
                    f"LoRA '{quoted(path, 200)}' is merged into the weights: load the pipeline again "
                    "without it.",
                )
            return [entry for entry in loras if entry is not found]

        return await self._adapted(without)

    async def _adapted(self, change: Callable[[Loaded], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        try:
            loaded = await self._pipelines.adapt(change)
        except NothingLoaded as error:
            raise ApiError(409, f"LoRA files cannot be changed now: {error}") from error
        except ServingError as error:
            raise ApiError(400, str(error)) from error
        return loaded.lora_adapters() or []

    def _files(self, loras: Iterable[Mapping[str, Any]]) -> list[Path]:
        """Of these entries, as far as they are still there."""
        files = []
        for lora in loras:
            with contextlib.suppress(ApiError):
                files.append(find_lora(lora["path"], self._lora_directories))
        return files

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
