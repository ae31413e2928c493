"""Caches that stay with their engine between two calls, so that they are not copied from process to process.

Only an autoencoder's caches are: nobody but the next call reads them. A call's caches are a set, which its
caller names; a later call names the set that it reads, and sets that nobody needs any more. So an engine
stays a function of what it is given, and a cancelled chunk goes on from the set before it. The graph that
begins a stream runs in the same process, or its caches would have to come from another one. Torch-free.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from streaming.records import EngineError

KEPT_INPUT: Final = "kept"  # input of the engine's model, a KeptCommand as JSON; absent: all goes by value
CACHE: Final = "cache_"
NEW_CACHE: Final = "new_cache_"  # output that is input `cache_` of the next call
MOST_SETS: Final = 256  # far more than sessions; those beyond are of callers that died


@dataclass(frozen=True, slots=True)
class KeptCommand:
    """What a call does with sets of caches.

    use     read from this one; None: the caches are among the inputs, or there are none before `first`
    keep    name for those that it makes
    drop    names of those that nobody needs
    first   engine whose graph runs instead, because a stream begins; None: the model's own graph
    """

    use: str | None
    keep: str
    drop: tuple[str, ...] = ()
    first: str | None = None

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def decode(text: bytes | str) -> "KeptCommand":
        values = json.loads(text)
        return KeptCommand(**values | {"drop": tuple(values["drop"])})


class KeptCaches:
    """The sets of one engine, in ONNX Runtime's own memory."""

    def __init__(self, session: Any, open_first: Callable[[str], Any]) -> None:
        """session: onnxruntime.InferenceSession of a graph with caches.

        open_first: from the name of an engine to the session of its graph, which makes a stream's first ones
        """
        self._session = session
        self._open_first = open_first
        self._firsts: dict[str, Any] = {}
        self._sets: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sets)

    def run(self, names: Sequence[str], feeds: Mapping[str, Any], command: KeptCommand) -> list[Any]:
        """The outputs `names`, numpy arrays; the new caches stay here.

        feeds: numpy arrays by name, without what `command.use` holds. Raises EngineError for an unknown set,
        and when the graph that begins a stream cannot be opened.
        """
        from onnxruntime import OrtValue  # an extra: the gateway's installation has none

        for name in command.drop:
            self._sets.pop(name, None)
        known = {} if command.use is None else self._sets.get(command.use)
        if known is None:
            raise EngineError("The engine no longer has the stream's caches. Start the stream again.")
        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()} | known
        session = self._session if command.first is None else self._first(command.first)
        new_caches = [v.name for v in session.get_outputs() if v.name.startswith(NEW_CACHE)]
        results = session.run_with_ort_values([*names, *new_caches], values)
        inputs = [CACHE + name.removeprefix(NEW_CACHE) for name in new_caches]
        self._sets[command.keep] = dict(zip(inputs, results[len(names) :], strict=True))
        if len(self._sets) > MOST_SETS:
            self._sets.popitem(last=False)
        return [value.numpy() for value in results[: len(names)]]

    def _first(self, name: str) -> Any:
        if name not in self._firsts:
            self._firsts[name] = self._open_first(name)
        return self._firsts[name]
