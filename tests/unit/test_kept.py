"""Caches that stay with their engine: the same numbers, and forgotten when nobody needs them."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from streaming.keeping_engine import BeginningEngine, KeepingEngine
from streaming.kept import KEPT_INPUT, MOST_SETS, KeptCaches, KeptCommand
from streaming.manifest import EngineManifest, TensorInfo
from streaming.ort import open_session
from streaming.records import EngineError

SHAPE = (1, 4)


class RunsHere:
    """A `ModelRunner` whose only model is a graph in ONNX Runtime; it notes what it was sent."""

    def __init__(self, directory: Path) -> None:
        """directory: `model.onnx` and the graphs that begin a stream."""
        self.kept = KeptCaches(
            open_session(directory / "model.onnx", 1),
            lambda name: open_session(directory / f"{name}.onnx", 1),
        )
        self.sent: list[set[str]] = []
        self.broken = False

    def is_ready(self, name: str) -> bool:
        return True

    def run(self, name: str, inputs: Mapping[str, Any], outputs: list[str]) -> dict[str, Any]:
        self.sent.append(set(inputs) - {KEPT_INPUT})
        if self.broken:
            raise EngineError("broken")
        feeds = {key: value for key, value in inputs.items() if key != KEPT_INPUT}
        command = KeptCommand.decode(inputs[KEPT_INPUT].reshape(-1)[0])
        return dict(zip(outputs, self.kept.run(outputs, feeds, command), strict=True))


@pytest.fixture
def runner(tmp_path: Path) -> RunsHere:
    """frames = z + cache, the new cache is twice z. To begin: frames = -z, and the cache is the same."""
    doubled = helper.make_node("Add", ["z", "z"], ["new_cache_00"])
    save_graph(
        tmp_path / "model.onnx",
        [helper.make_node("Add", ["z", "cache_00"], ["frames"]), doubled],
        ["z", "cache_00"],
    )
    save_graph(tmp_path / "begin.onnx", [helper.make_node("Neg", ["z"], ["frames"]), doubled], ["z"])
    return RunsHere(tmp_path)


def save_graph(path: Path, nodes: list[onnx.NodeProto], inputs: list[str]) -> None:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)

    graph = helper.make_graph(
        nodes, "toy", [value(name) for name in inputs], [value("frames"), value("new_cache_00")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def manifest(name: str, *inputs: str) -> EngineManifest:
    def info(tensor: str) -> TensorInfo:
        return TensorInfo(name=tensor, shape=SHAPE, dtype="float32")

    return EngineManifest.model_construct(
        name=name,
        inputs=tuple(map(info, inputs)),
        outputs=(info("frames"), info("new_cache_00")),
        begins_streams=True,
    )


@pytest.fixture
def engine(runner: RunsHere) -> KeepingEngine:
    return KeepingEngine(manifest("toy", "z", "cache_00"), runner)


def call(engine: KeepingEngine, z: float, cache: Tensor) -> tuple[float, Tensor]:
    """The picture's value, and the new cache."""
    results = engine.run({"z": torch.full(SHAPE, z), "cache_00": cache}, ["frames", "new_cache_00"])
    return float(results["frames"][0, 0]), results["new_cache_00"]


def test_a_call_reads_the_caches_of_the_call_before(engine: KeepingEngine, runner: RunsHere) -> None:
    first, cache = call(engine, 1.0, torch.full(SHAPE, 10.0))
    second, cache = call(engine, 2.0, cache)
    third, cache = call(engine, 3.0, cache)

    assert (first, second, third) == (11.0, 4.0, 7.0)
    assert runner.sent == [{"z", "cache_00"}, {"z"}, {"z"}]
    assert (cache.device.type, tuple(cache.shape)) == ("meta", SHAPE)


def test_an_older_cache_still_holds_what_it_held(engine: KeepingEngine) -> None:
    """A chunk that was cancelled goes on from the caches before it."""
    _, before = call(engine, 1.0, torch.zeros(SHAPE))
    call(engine, 5.0, before)

    again, _ = call(engine, 2.0, before)

    assert again == 4.0


def test_a_stream_begins_in_the_process_that_goes_on_with_it(engine: KeepingEngine, runner: RunsHere) -> None:
    beginning = BeginningEngine(manifest("begin", "z"), engine)

    results = beginning.run({"z": torch.full(SHAPE, 1.0)}, ["frames", "new_cache_00"])
    second, _ = call(engine, 2.0, results["new_cache_00"])

    assert float(results["frames"][0, 0]) == -1.0
    assert second == 4.0
    assert runner.sent == [{"z"}, {"z"}]
    assert (beginning.inputs, beginning.outputs) == (("z",), ("frames", "new_cache_00"))


def test_caches_that_nobody_holds_are_dropped_with_the_next_call(
    engine: KeepingEngine, runner: RunsHere
) -> None:
    cache = torch.zeros(SHAPE)
    for _ in range(5):
        _, cache = call(engine, 1.0, cache)
    gc.collect()

    _, cache = call(engine, 1.0, cache)

    assert len(runner.kept) <= 2  # of this call, and the one that it read


def test_what_a_failed_call_was_to_drop_is_dropped_by_the_next(
    engine: KeepingEngine, runner: RunsHere
) -> None:
    _, cache = call(engine, 1.0, torch.zeros(SHAPE))
    _, cache = call(engine, 1.0, cache)
    runner.broken = True
    with pytest.raises(EngineError):
        call(engine, 1.0, cache)
    runner.broken = False

    value, cache = call(engine, 1.0, cache)

    assert value == 3.0
    assert len(runner.kept) == 2


def test_a_set_that_the_engine_does_not_have_is_refused(runner: RunsHere) -> None:
    zeros = {"z": torch.zeros(SHAPE).numpy()}

    with pytest.raises(EngineError, match="no longer has the stream's caches"):
        runner.kept.run(["frames"], zeros, KeptCommand("unknown", "next"))


def test_sets_of_callers_that_died_do_not_grow_without_end(runner: RunsHere) -> None:
    feeds = {name: torch.zeros(SHAPE).numpy() for name in ("z", "cache_00")}

    for number in range(MOST_SETS + 3):
        runner.kept.run(["frames"], feeds, KeptCommand(None, str(number)))

    assert len(runner.kept) == MOST_SETS
