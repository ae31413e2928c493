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
        self._calls: list[Callable[[], object]] = []  # that wait, too
        self.tempo: Tempo | None = None

    def hold(self, values: Mapping[str, Any], by: Control | None) -> dict[str, Any]:
        """Keep what has to wait; returns what takes effect now. by: who is told; None: everybody."""
        now = {name: value for name, value in values.items() if name in _AT_ONCE}
        later = {name: value for name, value in values.items() if name not in _AT_ONCE}
        timing = {**self._timing(), **{name: value for name, value in values.items() if name in TIMING}}
        wait_s = self._wait_s(timing)
        if wait_s <= 0:
            held, calls = self._take()  # before what is newer
            fold(held, later)
            for call in calls:
                asyncio.get_running_loop().call_soon(call)
            return {**now, **held}
        if later:
            fold(self._held, later)
            self._schedule(wait_s, by)
        return now

    def call(self, call: Callable[[], object]) -> None:
        """Call it when the changes that wait for the boundary have taken effect; without a tempo at once."""
        wait_s = self._wait_s(self._timing())
        if wait_s <= 0:
            call()
        else:
            self._calls.append(call)
            self._schedule(wait_s, None)

    def close(self) -> None:
        """Forget what waits."""
        self._take()

    def _wait_s(self, timing: Mapping[str, Any]) -> float:
        mode: QuantizeMode = timing.get("quantize_mode") or "none"
        lookahead_ms = timing.get("lookahead_ms") or 0.0
        return 0.0 if self.tempo is None else self.tempo.wait_s(mode, lookahead_ms)

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

    def _take(self) -> tuple[dict[str, Any], list[Callable[[], object]]]:
        """The values and the calls that were held; nothing is any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, calls = self._held, self._calls
        self._held, self._calls, self._told = {}, [], []
        return held, calls

    def _due(self) -> None:
        held, calls = self._take()
        if held:
            self._apply(held)
        for call in calls:
            call()
        self._notify({"type": "change_applied"})
