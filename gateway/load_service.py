"""From the body of a load request to an accepted load."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.errors import ApiError
from gateway.load_params import LoadContext, find_lora, parse_load_request
from gateway.pipelines import Pipelines

_GIB = 1 << 30


class LoadService:
    """Checks load requests and hands them to the state machine."""

    def __init__(self, pipelines: Pipelines, lora_directories: list[Path]) -> None:
        self._pipelines = pipelines
        self._lora_directories = lora_directories

    def loras_in_use(self) -> list[Path]:
        """LoRA files of what is loaded or on its way; they must not be deleted."""
        files = []
        for params in self._pipelines.params_in_use():
            for lora in params.get("loras") or ():
                with contextlib.suppress(ApiError):  # the file is gone already
                    files.append(find_lora(lora["path"], self._lora_directories))
        return files

    async def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Accept a load and return the answer's body; the status shows it from then on.

        Raises ApiError and ValidationFailed; what is loaded stays as it is then.
        """
        await self._pipelines.serving.verify()  # else an equal request might be answered from memory
        memory = await self._pipelines.serving.gpu_memory_bytes()
        context = LoadContext(
            availability=self._pipelines.serving.availability,
            lora_directories=self._lora_directories,
            vram_gib=None if memory is None else memory[1] / _GIB,
        )
        request = parse_load_request(body, context)
        state = self._pipelines.request_load(request)
        return {
            "message": "Pipeline loading initiated successfully",
            "status": state.value,
            "pipeline_id": request.spec.id,
            "pipeline_ids": [request.spec.id],
            "load_params": request.params,
            "warnings": request.warnings,
        }
