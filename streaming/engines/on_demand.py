"""An engine that is in memory only while it is used, in place of the others.

The text encoder is the largest engine of the small models and is needed only for a new prompt. Where it does
not fit beside the other engines they make room for it (serving.md 8.7); a new prompt takes seconds then.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from streaming.engines.engine import Engine, EngineWrapper
from streaming.errors import FatalStreamError, WanstreamError

logger = logging.getLogger(__name__)

_ATTEMPTS = 5  # memory of models that were unloaded is not free at once
_PAUSE_S = 1.0


class Loader(Protocol):
    """Brings engines into memory and out of it, by name."""

    def load(self, name: str) -> None:
        """No effect when it is there. Raises WanstreamError."""

    def unload(self, name: str) -> None:
        """No effect when it is not there. Returns when it is gone. Raises WanstreamError."""


class EngineOnDemand(EngineWrapper):
    """An engine that is loaded for each call and unloaded after it.

    Calls of a pipeline do not overlap, so nobody misses the other engines meanwhile. They keep nothing
    between calls: whatever a stream remembers are tensors that are given to them.
    """

    def __init__(
        self, engine: Engine, name: str, loader: Loader, others: Sequence[str], pause_s: float = _PAUSE_S
    ) -> None:
        """name: of the engine. others: names of the engines that make room, in the order of loading.

        pause_s: between two attempts to load one
        """
        super().__init__(engine)
        self._name, self._loader, self._others, self._pause_s = name, loader, tuple(others), pause_s

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """As Engine.run; raises FatalStreamError when the other engines cannot be loaded again."""
        with self._in_memory():
            return super().run(inputs, outputs)

    @contextlib.contextmanager
    def _in_memory(self) -> Iterator[None]:
        try:
            for name in reversed(self._others):
                self._loader.unload(name)
            self._load(self._name)
            yield
        finally:
            self._bring_back_others()

    def _bring_back_others(self) -> None:
        """Whatever has failed before. Raises FatalStreamError, after all were tried."""
        problems: list[WanstreamError] = []
        try:
            self._loader.unload(self._name)
        except WanstreamError as error:
            logger.warning("Engine %s takes memory that the others may need: %s", self._name, error)
        for name in self._others:
            try:
                self._load(name)
            except WanstreamError as error:
                problems.append(error)
        if problems:
            raise FatalStreamError(
                "The engines could not be loaded again after the text encoder ran "
                f"({'; '.join(map(str, problems))}). Load the pipeline again, with a smaller size if memory "
                "is short."
            ) from problems[0]

    def _load(self, name: str) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._loader.load(name)
            except WanstreamError as error:
                if attempt == _ATTEMPTS:
                    raise
                logger.info("Engine %s is not loaded yet: %s", name, error)
                time.sleep(self._pause_s)
            else:
                return
