"""What the status shows of how a load is served."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from export.onnx.store import EngineStore
from gateway.serving.load_plans import placement_of, served_plan
from streaming.engines.engine_set import EngineSet
from streaming.engines.load_plan import Backend
from streaming.memory.fit import Fit
from streaming.memory.plan import memory_plan, read_manifests
from streaming.specs import LONGLIVE
from tests.engines import SIZE, load_plan


@pytest.mark.parametrize(
    ("backend", "gpus", "runtime", "device", "kind"),
    [
        ("onnxruntime", (), "onnxruntime", "cpu", "memory"),
        ("triton", (), "onnxruntime", "cpu", "memory"),
        ("triton", (1,), "tensorrt", "cuda:1", "GPU memory"),
        ("triton", (0, 2), "tensorrt", "cuda:0,2", "GPU memory"),
    ],
)
def test_every_engine_is_shown_with_its_place_and_no_path(
    backend: Backend,
    gpus: tuple[int, ...],
    runtime: str,
    device: str,
    kind: str,
    exported_engines: tuple[Path, EngineSet],
) -> None:
    root, engines = exported_engines
    store = EngineStore(root / "engines")
    manifests = read_manifests(store.models, engines.engines(SIZE))
    plan = load_plan(store, engines, backend=backend, gpus=gpus, make_room=(engines.transformer,))
    assert LONGLIVE.loop is not None
    memory = memory_plan(engines, manifests, LONGLIVE.loop, SIZE, placement_of(plan))

    shown = served_plan(plan, engines, manifests, Fit(memory, plan.make_room, 3, None))

    assert [engine.name for engine in shown.engines] == list(engines.engines(SIZE))
    assert {(e.backend, e.runtime, e.device) for e in shown.engines} == {(backend, runtime, device)}
    assert sum(engine.weights_bytes for engine in shown.engines) == shown.memory.parts["weights"]
    assert (shown.make_room, shown.sessions) == ([engines.transformer], 3)
    assert shown.memory.kind == kind
    assert sum(shown.memory.parts.values()) == shown.memory.total_bytes == memory.total()
    assert str(root) not in json.dumps(asdict(shown))
