"""A pipeline whose streams do what the parameters say: wait, fail, die, call another model.

Runs inside Triton, on the product's own model class; every picture tells what the stream knew when making it.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from streaming.errors import FatalStreamError, WanstreamError
from streaming.triton.protocol import Meta
from streaming.triton.sessions import ChunkCancelled, Images, LoadContext, ModelRunner, Stream

LABEL, RESET, CHUNKS = 0, 1, 2  # channels of a picture: parameter `label`, `init_cache`, chunks made before
ERRORS: dict[str, Callable[[], Exception]] = {
    "told": lambda: WanstreamError("The scripted chunk failed. Try the next one."),
    "fatal": lambda: FatalStreamError("The scripted stream is over. Start another one."),
    "bug": lambda: ValueError("scripted bug\nwith a second line"),
    "memory": lambda: RuntimeError("CUDA error: out of memory"),
}


class ScriptedPipeline:
    """Load parameters: `refuse` (text of an error), `needs` (name of a model that must be loaded)."""

    def __init__(self, context: LoadContext) -> None:
        if "refuse" in context.parameters:
            raise WanstreamError(context.parameters["refuse"])
        if "crash" in context.parameters:
            os._exit(1)
        needed = context.parameters.get("needs")
        if needed is not None and not context.models.is_ready(needed):
            raise WanstreamError(f"Model '{needed}' is not loaded. Load it first.")
        self._models = context.models

    def open_stream(self) -> Stream:
        return ScriptedStream(self._models)

    def warm_up(self) -> None:
        sys.stdout.write("the scripted pipeline is warm\n")
        sys.stdout.flush()  # Triton's Python buffers what models print

    def close(self) -> None:
        sys.stdout.write("the scripted pipeline is closed\n")


class ScriptedStream:
    """Makes `groups` pictures of one chunk, `delay_s` apart; `error` after `error_at` of them."""

    def __init__(self, models: ModelRunner) -> None:
        self._models = models
        self._chunks = 0

    def next_chunk(
        self, parameters: Mapping[str, Any], video: Images | None, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Images, Meta]]:
        groups = int(parameters.get("groups", 1))
        for number in range(groups):
            if number == parameters.get("error_at"):
                raise ERRORS[parameters["error"]]()
            if "call" in parameters:
                self._models.run(parameters["call"], {"IN": np.zeros(1, np.float32)}, ["OUT"])
            self._wait(float(parameters.get("delay_s", 0)), cancelled)
            image = self._picture(parameters)
            if video is not None:
                image[..., LABEL] = video[0, 0, 0, 0]
            last = number == groups - 1
            if last:
                self._chunks += 1
            yield image, Meta(last=True) if last and parameters.get("mark_last", True) else Meta()

    def _picture(self, parameters: Mapping[str, Any]) -> Images:
        image = np.zeros((1, 2, 2, 3), np.uint8)
        image[..., LABEL] = parameters.get("label", 0)
        image[..., RESET] = parameters.get("init_cache", False)
        image[..., CHUNKS] = self._chunks
        return image

    @staticmethod
    def _wait(seconds: float, cancelled: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if cancelled():
                raise ChunkCancelled
            time.sleep(0.005)
