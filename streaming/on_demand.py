"""An engine that is in memory only while it is used, in place of the others.

The text encoder is the largest engine of the small models and is needed only for a new prompt. Where it does
not fit beside the other engines they make room for it (serving.md 8.7); a new prompt takes seconds then.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from streaming.engines import Engine, EngineWrapper
from streaming.errors import FatalStreamError, WanstreamError
from streaming.sessions import ModelRunner

logger = logging.getLogger(__name__)

_ATTEMPTS = 5  # memory of models that were unloaded is not free at once
_PAUSE_S = 1.0


class EngineOnDemand(EngineWrapper):
    """An engine on the same Triton server that is loaded for each call and unloaded after it.

    Calls of a pipeline do not overlap, so nobody misses the other engines meanwhile.
    """

    def __init__(self, engine: Engine, name: str, models: ModelRunner, others: Sequence[str]) -> None:
        """name: of the engine's Triton model.

        others: names of the engines that make room, in the order in which they are loaded again. They keep
        nothing between calls.
        """
        super().__init__(engine)
        self._name, self._models, self._others = name, models, tuple(others)

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """As Engine.run; raises FatalStreamError when the other engines cannot be loaded again."""
        with self._in_memory():
            return super().run(inputs, outputs)

    @contextlib.contextmanager
    def _in_memory(self) -> Iterator[None]:
        for name in reversed(self._others):
            self._models.unload(name)
        try:
            self._load(self._name)
            yield
        finally:
            self._models.unload(self._name)
            try:
                for name in self._others:
                    self._load(name)
            except WanstreamError as error:
                raise FatalStreamError(
                    f"The engines could not be loaded again after the text encoder ran ({error}). Load the "
                    "pipeline again, with a smaller size if memory is short."
                ) from error

    def _load(self, name: str) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._models.load(name)
            except WanstreamError as error:
                if attempt == _ATTEMPTS:
                    raise
                logger.info("Engine %s is not loaded yet: %s", name, error)
                time.sleep(_PAUSE_S)
            else:
                return
