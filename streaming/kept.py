"""Caches that stay with their engine between two calls, so that they are not copied from process to process.

Only an autoencoder's caches are: nobody but the next call reads them. A call's caches are a set, which its
caller names; a later call names the set that it reads, and sets that nobody needs any more. So an engine
stays a function of what it is given, and a cancelled chunk goes on from the set before it. Torch-free.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streaming.records import EngineError

KEPT_INPUT: Final = "kept"  # input of the engine's model, a KeptCommand as JSON; absent: all goes by value
CACHE: Final = "cache_"
NEW_CACHE: Final = "new_cache_"  # output that is input `cache_` of the next call
MOST_SETS: Final = 256  # far more than sessions; those beyond are of callers that died


@dataclass(frozen=True, slots=True)
class KeptCommand:
    """What a call does with sets of caches. use: read from this one; keep: name for those that it makes."""

    use: str | None
    keep: str
    drop: tuple[str, ...] = ()

    def encode(self) -> bytes:
        return json.dumps({"use": self.use, "keep": self.keep, "drop": self.drop}).encode()

    @staticmethod
    def decode(text: bytes | str) -> "KeptCommand":
        values = json.loads(text)
        return KeptCommand(values["use"], values["keep"], tuple(values["drop"]))


class KeptCaches:
    """The sets of one engine, in ONNX Runtime's own memory."""

    def __init__(self, session: Any) -> None:
        """session: onnxruntime.InferenceSession of a graph with caches."""
        self._session = session
        self._new_caches = [v.name for v in session.get_outputs() if v.name.startswith(NEW_CACHE)]
        self._sets: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sets)

    def run(self, names: Sequence[str], feeds: Mapping[str, Any], command: KeptCommand) -> list[Any]:
        """The outputs `names`, numpy arrays; the new caches stay here.

        feeds: numpy arrays by name, without what `command.use` holds. Raises EngineError for an unknown set.
        """
        from onnxruntime import OrtValue  # an extra: the gateway's installation has none

        for name in command.drop:
            self._sets.pop(name, None)
        known = {} if command.use is None else self._sets.get(command.use)
        if known is None:
            raise EngineError("The engine no longer has the stream's caches. Start the stream again.")
        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()} | known
        results = self._session.run_with_ort_values([*names, *self._new_caches], values)
        inputs = [CACHE + name.removeprefix(NEW_CACHE) for name in self._new_caches]
        self._sets[command.keep] = dict(zip(inputs, results[len(names) :], strict=True))
        if len(self._sets) > MOST_SETS:
            self._sets.popitem(last=False)
        return [value.numpy() for value in results[: len(names)]]
