"""What a desk's messages mean for a stream: numbers and texts become parts of prompts and transitions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final

from gateway.osc import addresses
from gateway.osc.addresses import Key
from gateway.osc.wire import OscError
from gateway.stream.parameters.checks import MAX_PROMPTS

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a message may refer to: prompts that the stream shows now, paths of loaded adapters."""

    prompts: Callable[[], Sequence[Mapping[str, Any]]]
    adapters: Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True)
class _Said:
    """One message. parts: what stands for the <...> of the key's name."""

    key: Key
    parts: tuple[str, ...]
    arguments: Sequence[Any]
    around: Surroundings

    def value(self) -> Any:
        return self.key.convert(self.arguments)


@dataclass(slots=True)
class Desk:
    """What OSC has said of one stream and what later messages refer to.

    items: its prompts, by number; before it has set one, those of the stream.
    """

    items: dict[int, Values] = field(default_factory=dict)
    steps: int = 0
    method: str = "linear"

    def copy(self) -> "Desk":
        """The same for another stream."""
        return Desk({i: dict(item) for i, item in self.items.items()}, self.steps, self.method)

    def read(self, name: str, arguments: Sequence[Any], around: Surroundings) -> tuple[Values, Any]:
        """The partial update that a message is, which may be empty, and the value that it brought.

        name: of the key, as in the address. Raises OscError; nothing is remembered then.
        """
        key, parts = addresses.find(name)
        said = _Said(key, parts, arguments, around)
        special = _SPECIAL.get(key.name)
        if special is not None:
            return special(self, said)
        value = said.value()
        return {key.field or key.name: value}, value

    def _prompt(self, said: _Said) -> tuple[Values, Any]:
        prompts = [{"text": said.value(), "weight": 1.0}]
        addresses.check_field("prompts", prompts)
        self.items = dict(enumerate(prompts))
        if not self.steps:
            return {"prompts": prompts}, prompts[0]["text"]
        transition = {
            "target_prompts": prompts,
            "num_steps": self.steps,
            "temporal_interpolation_method": self.method,
        }
        return {"transition": transition}, prompts[0]["text"]

    def _item(self, said: _Said) -> tuple[Values, Any]:
        number, value = int(said.parts[0]), said.value()
        if number >= MAX_PROMPTS:
            raise OscError("address", f"Prompts have the numbers 0 to {MAX_PROMPTS - 1}")
        items = dict(self.items) or {i: dict(p) for i, p in enumerate(said.around.prompts())}
        part = said.key.name.rpartition("/")[2]
        items[number] = {"text": "", "weight": 1.0, **items.get(number, {}), part: value}
        addresses.check_field("prompts", [items[number]])
        self.items = items
        prompts = [items[i] for i in sorted(items) if items[i]["text"]]  # one with a weight only waits
        return ({"prompts": prompts} if prompts else {}), value

    def _list(self, said: _Said) -> tuple[Values, Any]:
        texts, weights = said.arguments[::2], said.arguments[1::2]
        if len(texts) != len(weights):
            raise OscError("type", "prompts takes a text and a weight, again and again")
        prompts = [
            {"text": _TEXT.convert([text]), "weight": _WEIGHT.convert([weight])}
            for text, weight in zip(texts, weights, strict=True)
        ]
        addresses.check_field("prompts", prompts)
        self.items = dict(enumerate(prompts))
        return {"prompts": prompts}, list(said.arguments)

    def _steps(self, said: _Said) -> tuple[Values, Any]:
        steps = said.value()
        addresses.check_transition(num_steps=steps)
        self.steps = steps
        return {}, steps

    def _method(self, said: _Said) -> tuple[Values, Any]:
        method = said.value()
        addresses.check_transition(temporal_interpolation_method=method)
        self.method = method
        return {}, method

    def _lora(self, said: _Said) -> tuple[Values, Any]:
        scale = said.value()
        if not -10 <= scale <= 10:
            raise OscError("range", f"A scale is between -10 and 10, not {scale}")
        paths = [path for path in said.around.adapters() if PurePath(path).stem == said.parts[0]]
        if not paths:
            raise OscError("address", "No adapter with that file name is loaded with runtime_peft")
        return {"lora_scales": [{"path": path, "scale": scale} for path in paths]}, scale


_TEXT: Final = addresses.find("prompt/0/text")[0]
_WEIGHT: Final = addresses.find("prompt/0/weight")[0]
_SPECIAL: Final[dict[str, Callable[[Desk, _Said], tuple[Values, Any]]]] = {
    "prompt": Desk._prompt,
    "prompt/<i>/text": Desk._item,
    "prompt/<i>/weight": Desk._item,
    "prompts": Desk._list,
    "transition_steps": Desk._steps,
    "temporal_interpolation_method": Desk._method,
    "lora/<stem>/scale": Desk._lora,
}
