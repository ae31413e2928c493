"""Inputs that stay with their engine: sent when they have changed and only then, the same numbers always."""

import gc
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streaming.held import HELD_INPUT, HeldCommand, HeldInputs
from streaming.holding_engine import HoldingEngine
from streaming.manifest import EngineManifest, TensorInfo
from streaming.records import EngineError

SHAPE = (2, 6)
NAMES = ("tokens", "cross_kv_00", "kv_00", "kv_01")


class Adds:
    """A `ModelRunner` whose only model adds up its inputs; it notes what it was sent."""

    def __init__(self) -> None:
        self.held = HeldInputs()
        self.sent: list[set[str]] = []
        self.broken = False

    def is_ready(self, name: str) -> bool:
        return True

    def run(self, name: str, inputs: Mapping[str, Any], outputs: list[str]) -> dict[str, Any]:
        self.sent.append(set(inputs) - {HELD_INPUT})
        if self.broken:
            raise EngineError("broken")
        feeds = {key: value for key, value in inputs.items() if key != HELD_INPUT}
        full = self.held.complete(feeds, HeldCommand.decode(inputs[HELD_INPUT].reshape(-1)[0]))
        assert set(full) == set(NAMES)
        return {"sum": torch.from_numpy(np.sum([full[name] for name in NAMES], axis=0))}

    def load(self, name: str) -> None:
        raise NotImplementedError

    def unload(self, name: str) -> None:
        raise NotImplementedError


@pytest.fixture
def runner() -> Adds:
    return Adds()


@pytest.fixture
def engine(runner: Adds) -> HoldingEngine:
    tensors = tuple(TensorInfo(name=name, shape=SHAPE, dtype="float32") for name in (*NAMES, "sum"))
    manifest = EngineManifest.model_construct(name="adds", inputs=tensors[:-1], outputs=tensors[-1:])
    return HoldingEngine(manifest, runner)


def inputs(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SHAPE, generator=generator) for name in NAMES}


def check(engine: HoldingEngine, given: Mapping[str, Tensor]) -> None:
    result = engine.run(given, ["sum"])["sum"]
    torch.testing.assert_close(result, sum(given.values()))


def test_caches_are_sent_once(engine: HoldingEngine, runner: Adds) -> None:
    given = inputs()

    for _ in range(3):
        given["tokens"] = torch.randn(SHAPE)
        check(engine, given)

    assert runner.sent == [set(NAMES), {"tokens"}, {"tokens"}]


def test_a_write_to_a_part_of_a_cache_is_noticed(engine: HoldingEngine, runner: Adds) -> None:
    given = inputs()
    check(engine, given)

    given["kv_01"][:, 2:4][0] = 7.0  # as a ring is written to, through views
    check(engine, given)

    assert runner.sent[1] == {"tokens", "kv_00", "kv_01"}


def test_another_prompt_sends_its_keys_only(engine: HoldingEngine, runner: Adds) -> None:
    given = inputs()
    check(engine, given)

    check(engine, given | {"cross_kv_00": torch.randn(SHAPE)})

    assert runner.sent[1] == {"tokens", "cross_kv_00"}


def test_streams_that_take_turns_read_their_own(engine: HoldingEngine, runner: Adds) -> None:
    one, other = inputs(1), inputs(2)

    for given in (one, other, other, one):
        check(engine, given)

    assert [len(sent) for sent in runner.sent] == [4, 4, 1, 4]


def test_after_a_failure_everything_is_sent_again(engine: HoldingEngine, runner: Adds) -> None:
    given = inputs()
    check(engine, given)
    runner.broken = True
    with pytest.raises(EngineError):
        engine.run(given, ["sum"])
    runner.broken = False

    check(engine, given)

    assert runner.sent[2] == set(NAMES)


def test_an_engine_that_was_started_again_says_what_it_lacks(engine: HoldingEngine, runner: Adds) -> None:
    given = inputs()
    check(engine, given)
    runner.held = HeldInputs()

    with pytest.raises(EngineError, match="no longer has the stream's caches"):
        engine.run(given, ["sum"])

    check(engine, given)


def test_what_was_sent_may_change_or_go_afterwards(engine: HoldingEngine, runner: Adds) -> None:
    held = HeldInputs()
    sent = np.ones(SHAPE, np.float32)
    held.complete({"kv_00": sent}, HeldCommand({"kv_": "a"}))
    sent[:] = 5

    again = held.complete({}, HeldCommand({"kv_": "a"}))

    np.testing.assert_array_equal(again["kv_00"], 1)


def test_a_stream_that_has_ended_takes_its_caches_along(engine: HoldingEngine) -> None:
    given = inputs()
    check(engine, given)
    cache = weakref.ref(given["kv_00"])

    del given
    gc.collect()

    assert cache() is None
    check(engine, inputs(3))
