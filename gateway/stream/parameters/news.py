"""What somebody changed, told to everybody else: merged, so that a fader does not flood the others."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from gateway.stream.parts import Control

_PERIOD_S: Final = 0.1


class ParameterNews:
    """Tells `parameters_updated` at most 10 times a second (streams.md 1.5)."""

    def __init__(self, controls: Callable[[], Sequence[Control]]) -> None:
        """controls(): everybody who is there."""
        self._controls = controls
        self._changes: dict[str, tuple[Any, Control | None]] = {}  # newest value of each, and who sent it
        self._told = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def add(self, values: Mapping[str, Any], by: Control | None) -> None:
        """`by` has changed these parameters; None: it came over REST, all are told."""
        if not values:
            return
        self._changes |= {key: (value, by) for key, value in values.items()}
        if self._timer is None:
            wait_s = self._told + _PERIOD_S - time.monotonic()
            if wait_s <= 0:
                self._tell()
            else:
                self._timer = asyncio.get_running_loop().call_later(wait_s, self._tell)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self._timer = None
        self._told = time.monotonic()
        changes, self._changes = self._changes, {}
        for control in self._controls():
            others = {key: value for key, (value, by) in changes.items() if by is None or by is not control}
            if others:
                control.notify({"type": "parameters_updated", "parameters": others})
