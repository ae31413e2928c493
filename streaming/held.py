"""Inputs that stay with their engine until they change, so that they are not copied from process to process.

A transformer is called several times in a chunk with the same caches: they travel with the first call only.
An engine holds the last value of each group of inputs, under a name that the caller gave it; a later call
names it instead of sending it. There is one caller, so one value is enough. Torch-free.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from streaming.records import EngineError

HELD_INPUT: Final = "held"  # input of the engine's model, a HeldCommand as JSON; absent: all goes by value
GROUPS: Final = ("kv_", "cross_kv_")  # prefixes of the inputs that belong together


@dataclass(frozen=True, slots=True)
class HeldCommand:
    """Names of the values that a call reads, by group. A value that comes with it is held from then on."""

    names: Mapping[str, str]

    def encode(self) -> bytes:
        return json.dumps(dict(self.names)).encode()

    @staticmethod
    def decode(text: bytes | str) -> "HeldCommand":
        return HeldCommand(json.loads(text))


class HeldInputs:
    """What one engine holds."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._arrays: dict[str, dict[str, Any]] = {}  # by group and input

    def complete(self, feeds: Mapping[str, Any], command: HeldCommand) -> dict[str, Any]:
        """All inputs of a call, from those that were sent, numpy arrays by name.

        Raises EngineError when a group is neither sent nor held.
        """
        feeds = dict(feeds)
        for group, name in command.names.items():
            sent = {key: array for key, array in feeds.items() if key.startswith(group)}
            if sent:
                self._hold(group, name, sent)
            elif self._names.get(group) != name:
                raise EngineError("The engine no longer has the stream's caches. Start the stream again.")
            feeds |= self._arrays[group]
        return feeds

    def _hold(self, group: str, name: str, sent: Mapping[str, Any]) -> None:
        """Copy, for what was sent is memory of the request; to the old place, for new pages cost more."""
        self._names.pop(group, None)
        held = self._arrays.setdefault(group, {})
        for key, array in sent.items():
            if key in held and (held[key].shape, held[key].dtype) == (array.shape, array.dtype):
                np.copyto(held[key], array)
            else:
                held[key] = array.copy()
        self._names[group] = name
