"""The text encoder in turns with the other engines, when one of them does not go or does not come back."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from streaming.engines.engine import TorchEngine
from streaming.engines.on_demand import EngineOnDemand
from streaming.engines.records import EngineError
from streaming.errors import FatalStreamError, WanstreamError

OTHERS = ("text_kv", "decoder", "transformer")
ENCODER = "encoder"


class Memory:
    """What is loaded; some engines stay, and some do not come back."""

    def __init__(self, stay: Sequence[str] = (), gone: Mapping[str, int] | None = None) -> None:
        """stay: raise when they are unloaded. gone: how often loading an engine fails."""
        self.loaded = set(OTHERS)
        self._stay, self._gone = stay, dict(gone or {})

    def load(self, name: str) -> None:
        if self._gone.get(name, 0):
            self._gone[name] -= 1
            raise WanstreamError(f"no room for {name}")
        self.loaded.add(name)

    def unload(self, name: str) -> None:
        if name in self._stay:
            raise WanstreamError(f"{name} is stuck")
        self.loaded.discard(name)


def encode(memory: Memory, *, fails: bool = False) -> Tensor:
    """Run the encoder in these circumstances."""

    def run(x: Tensor) -> Tensor:
        assert memory.loaded == {ENCODER}
        if fails:
            raise EngineError("the encoder failed")
        return x + 1

    engine = TorchEngine(run, ("x",), ("y",))
    on_demand = EngineOnDemand(engine, ENCODER, memory, OTHERS, pause_s=0)
    return on_demand.run({"x": torch.zeros(1)}, ["y"])["y"]


def test_the_others_are_back_afterwards() -> None:
    memory = Memory(gone={"decoder": 3})

    assert encode(memory).item() == 1
    assert memory.loaded == set(OTHERS)


def test_one_that_does_not_go_loses_no_other() -> None:
    """Those that went before it come back, and the stream goes on."""
    memory = Memory(stay=["text_kv"])

    with pytest.raises(WanstreamError, match="text_kv is stuck") as failure:
        encode(memory)

    assert not isinstance(failure.value, FatalStreamError)
    assert memory.loaded == set(OTHERS)


def test_an_encoder_that_fails_leaves_everything_as_it_was() -> None:
    memory = Memory()

    with pytest.raises(EngineError, match="the encoder failed"):
        encode(memory, fails=True)

    assert memory.loaded == set(OTHERS)


def test_one_that_does_not_come_back_ends_the_stream_and_the_others_are_tried() -> None:
    memory = Memory(gone={"decoder": 99})

    with pytest.raises(FatalStreamError, match=r"no room for decoder.*Load the pipeline again"):
        encode(memory)

    assert memory.loaded == {"text_kv", "transformer"}


@pytest.mark.parametrize("fails", [False, True])
def test_an_encoder_that_stays_does_not_hide_that_the_stream_is_over(fails: bool) -> None:
    memory = Memory(stay=[ENCODER], gone={"transformer": 99})

    with pytest.raises(FatalStreamError, match="no room for transformer"):
        encode(memory, fails=fails)


def test_an_encoder_that_stays_does_no_harm_where_there_is_room() -> None:
    memory = Memory(stay=[ENCODER])

    assert encode(memory).item() == 1
    assert memory.loaded == {ENCODER, *OTHERS}
