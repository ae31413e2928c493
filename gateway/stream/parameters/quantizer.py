"""Changes of one stream's parameters that wait for the beat."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.stream.parameters.checks import TIMING, WISHES, fold
from gateway.stream.parameters.tempo import QuantizeMode, Tempo
from gateway.stream.parts import Control

_AT_ONCE: Final = TIMING | WISHES | {"paused", "pipeline_ids", "recording"}


class Quantizer:
    """Holds valid values until the next boundary; those that come in the meantime join them.

    tempo: None: there is none, and nothing waits.
    """

    def __init__(
        self,
        timing: Callable[[], Mapping[str, Any]],
        apply: Callable[[dict[str, Any]], object],
        notify: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """timing(): `quantize_mode` and `lookahead_ms` that are in force. apply(values): they take effect.
        notify: tell all controls.
        """
        self._timing = timing
        self._apply = apply
        self._notify = notify
        self._held: dict[str, Any] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._told: list[Control | None] = []
        self.tempo: Tempo | None = None

    def hold(self, values: Mapping[str, Any], by: Control | None) -> dict[str, Any]:
        """Keep what has to wait; returns what takes effect now. by: who is told; None: everybody."""
        now = {name: value for name, value in values.items() if name in _AT_ONCE}
        later = {name: value for name, value in values.items() if name not in _AT_ONCE}
        timing = {**self._timing(), **{name: value for name, value in values.items() if name in TIMING}}
        mode: QuantizeMode = timing.get("quantize_mode") or "none"
        lookahead_ms = timing.get("lookahead_ms") or 0.0
        wait_s = 0.0 if self.tempo is None else self.tempo.wait_s(mode, lookahead_ms)
        if wait_s <= 0:
            held = self._take()  # before what is newer
            fold(held, later)
            return {**now, **held}
        if later:
            fold(self._held, later)
            self._schedule(wait_s, by)
        return now

    def close(self) -> None:
        """Forget what waits."""
        self._take()

    def _schedule(self, wait_s: float, by: Control | None) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_later(wait_s, self._due)
        if by in self._told:
            return
        self._told.append(by)
        delay_s = max(0.0, self._timer.when() - loop.time())
        message = {"type": "change_scheduled", "delay_ms": round(1000 * delay_s)}
        if by is None:
            self._notify(message)
        else:
            by.notify(message)

    def _take(self) -> dict[str, Any]:
        """What was held; nothing is any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held, self._told = self._held, {}, []
        return held

    def _due(self) -> None:
        self._apply(self._take())
        self._notify({"type": "change_applied"})
