"""How a load is served: which of the backends runs the engines, and where."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.serving.engine_sets import FoundSet
from gateway.serving.interface import ServedEngine, ServedMemory, ServedPlan
from streaming.engines.load_plan import Backend, BackendChoice, LoadPlan
from streaming.engines.manifest import EngineManifest
from streaming.engines.memory_plan import GPU, IN_PROCESS, MODEL_PROCESSES, MemoryPlan, Placement
from streaming.specs import LOAD_CHOICES


def plan_load(found: FoundSet, models: Path, load_params: Mapping[str, Any], *, on_cpu: bool) -> LoadPlan:
    """The plan of a load, before memory is looked at.

    models: directory of the engines' Triton models. on_cpu: Triton is the embedded one, without TensorRT.
    """
    has_plans = found.content.serve_with == "tensorrt" and not on_cpu
    choice: BackendChoice = load_params.get("backend", "auto")
    auto: Backend = "triton" if has_plans else "onnxruntime"
    backend = auto if choice == "auto" else choice
    return LoadPlan(
        engine_set=found.directory,
        models=models,
        height=load_params["height"],
        width=load_params["width"],
        backend=backend,
        gpus=found.content.gpus if has_plans and backend == "triton" else (),
        base_seed=load_params["base_seed"],
        loop={name: load_params[name] for name in LOAD_CHOICES if name in load_params},
    )


def placement_of(plan: LoadPlan) -> Placement:
    """The memory that a load goes into."""
    if plan.gpus:
        return GPU
    return IN_PROCESS if plan.backend == "onnxruntime" else MODEL_PROCESSES


def served_plan(
    plan: LoadPlan, manifests: Mapping[str, EngineManifest], memory: MemoryPlan, sessions: int | None
) -> ServedPlan:
    """What the status shows of a load: without paths, which are nobody's business outside this machine.

    manifests: of all its engines, by name. sessions: how many have room.
    """
    device = f"cuda:{','.join(map(str, plan.gpus))}" if plan.gpus else "cpu"
    return ServedPlan(
        engine_set=memory.name,
        engines=[
            ServedEngine(name, plan.backend, plan.variant, device, manifest.bytes)
            for name, manifest in manifests.items()
        ],
        make_room=list(plan.make_room),
        sessions=sessions,
        memory=ServedMemory(
            memory.placement.memory, memory.total(), memory.per_session, dict(memory.parts())
        ),
    )
