"""How a load is served: engines or a checkpoint, which of the backends runs it, and where."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.serving.adapters import Adapters, live_adapters
from gateway.serving.checkpoints import Checkpoints
from gateway.serving.engine_checks import checked_manifests
from gateway.serving.engine_sets import EngineSets, FoundSet
from gateway.serving.interface import Availability, ServedEngine, ServedMemory, ServedPlan, ServingError
from gateway.serving.merged_sets import INSTEAD, SetMerger, loras_of
from streaming.adapters.layers import MOST_RANK
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.engines.engine_set import EngineSet
from streaming.engines.load_plan import Backend, BackendChoice, LoadPlan, VacePlan
from streaming.engines.manifest import EngineManifest
from streaming.engines.ort import Provider
from streaming.engines.records import EngineError
from streaming.memory.checkpoints import CheckpointSizes, checkpoint_weights
from streaming.memory.fit import Fit, fit, fit_checkpoint
from streaming.memory.plan import GPU, IN_PROCESS, IN_PROCESS_ON_GPU, MODEL_PROCESSES, Placement
from streaming.specs import LOAD_CHOICES, LoopSpec, PipelineSpec


@dataclass(frozen=True, eq=False, slots=True)
class EngineLoad:
    """A load of an engine set.

    manifests   of all its engines of the size, by name
    reason      why this backend
    """

    plan: LoadPlan
    engines: EngineSet
    manifests: Mapping[str, EngineManifest]
    loop: LoopSpec  # of the pipeline
    reason: str = ""

    @property
    def on_gpu(self) -> bool:
        return placement_of(self.plan).on_gpu

    @property
    def waits_for_merge(self) -> bool:
        """Whether the engines with the load's LoRA files in their weights have to be made first."""
        return self.plan.backend == "triton" and bool(self.plan.merged)

    @property
    def transformer(self) -> TransformerConfig | None:
        """Its sizes; None: nobody can tell."""
        return self.engines.model.transformer()

    def fit(self, free: int | None, free_on_cpu: int | None) -> Fit:
        """How it goes into so many bytes. Raises DoesNotFitError with the numbers."""
        loop = self.engines.built_for(self.loop.chosen(self.plan.loop))
        return fit(self.engines, self.manifests, loop, self.plan.size, placement_of(self.plan), free)

    def planned(self, chosen: Fit) -> LoadPlan:
        """The plan, complete."""
        return self.plan.model_copy(update={"make_room": chosen.make_room})

    def served(self, chosen: Fit) -> ServedPlan:
        """What the status shows."""
        shown = served_plan(self.planned(chosen), self.engines, self.manifests, chosen)
        return replace(shown, reason=self.reason)


@dataclass(frozen=True, eq=False, slots=True)
class CheckpointLoad:
    """A load of a checkpoint, without engines. reason: why this backend."""

    plan: LoadPlan
    spec: PipelineSpec
    sizes: CheckpointSizes
    vae_types: tuple[str, ...]  # whose files are there
    reason: str = ""

    @property
    def on_gpu(self) -> bool:
        return self.plan.pytorch is not None and self.plan.pytorch.on_gpu

    @property
    def transformer(self) -> TransformerConfig | None:
        """Its sizes."""
        return self.sizes.transformer

    def fit(self, free: int | None, free_on_cpu: int | None) -> Fit:
        """How it goes into so many bytes, of a GPU and of the machine.

        Raises DoesNotFitError with the numbers, and with what would fit.
        """
        return fit_checkpoint(self.spec, self.sizes, self.plan, self.vae_types, free, free_on_cpu)

    def planned(self, chosen: Fit) -> LoadPlan:
        """The plan, complete."""
        return self.plan.model_copy(update={"pytorch": chosen.pytorch or self.plan.pytorch})

    def served(self, chosen: Fit) -> ServedPlan:
        """What the status shows."""
        torch_plan = self.planned(chosen).pytorch
        assert torch_plan is not None, "a checkpoint runs in PyTorch"
        devices = {"text_encoder": torch_plan.text_device}
        weights = checkpoint_weights(self.sizes, torch_plan, text_encoder=True)
        return ServedPlan(
            engine_set=None,
            engines=[
                ServedEngine(name, "pytorch", "pytorch", devices.get(name, torch_plan.device), size)
                for name, size in weights.items()
            ],
            make_room=[],
            sessions=chosen.sessions,
            memory=_served_memory(chosen),
            checkpoint=TRANSFORMER_FILES[self.spec.id].weights,
            precision=torch_plan.precision,
            reason=self.reason,
        )


Load = EngineLoad | CheckpointLoad


@dataclass(frozen=True, slots=True)
class LoadPlanner:
    """What can be loaded here, and how.

    checkpoints: None where PyTorch runs none. adapters: None where there are no LoRA files. merger: None
    where none are merged into engines of Triton.

    Without a wish: plans for a GPU, or engines that TensorRT for RTX has compiled for it; a checkpoint on a
    GPU; engines in ONNX Runtime, on a GPU if that can be, those of the demonstration on the CPU; a checkpoint
    on the CPU.
    """

    sets: EngineSets
    checkpoints: Checkpoints | None = None
    adapters: Adapters | None = None
    merger: SetMerger | None = None

    def availability(self, spec: PipelineSpec, backend: BackendChoice = "auto") -> Availability:
        """Whether a pipeline can be loaded, as a load asks for it."""
        sets, checkpoints = self.sets.availability(spec), self.checkpoints
        if backend == "pytorch":
            return _NO_CHECKPOINTS if checkpoints is None else checkpoints.availability(spec)
        if backend != "auto" or checkpoints is None or not checkpoints.has(spec):
            return sets
        weights = checkpoints.availability(spec)
        if self._prefers_checkpoint(spec):
            return weights
        if not self.sets.has_real(spec):
            return sets
        vae_types = tuple(dict.fromkeys((*sets.vae_types, *weights.vae_types)))
        return replace(
            sets, supported_resolutions=None, vae_types=vae_types, combinations=None, runtime_loras=True
        )

    def opening(self) -> PipelineSpec | None:
        """The pipeline that a server begins with if nobody names one: a demonstration, or none."""
        spec = self.sets.opening()
        return None if spec is None or self._prefers_checkpoint(spec) else spec

    def makes_demo(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> bool:
        """Whether this load needs engines of the demonstration that have to be made first."""
        backend: BackendChoice = load_params.get("backend", "auto")
        if backend == "pytorch" or (backend == "auto" and self._prefers_checkpoint(spec)):
            return False
        return self.sets.waits_for_demo(
            spec, adapters=live_adapters(load_params), vace=bool(load_params.get("vace_enabled"))
        )

    def decide(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> Load:
        """How a load is served, before memory is looked at.

        Raises ServingError when there is nothing for it, or when it is damaged or cannot run.
        """
        backend: BackendChoice = load_params.get("backend", "auto")
        if backend == "pytorch":
            return self._checkpoint(spec, load_params, _ASKED)
        if backend == "auto" and self._prefers_checkpoint(spec):
            return self._checkpoint(spec, load_params, self._why_checkpoint(spec))
        try:
            found = self.sets.find(spec, load_params)
        except ServingError:
            if backend == "auto" and self._fills_in(spec) and not load_params.get("quantization"):
                return self._checkpoint(spec, load_params, "the engines are built for other parameters")
            raise
        plan = plan_load(
            found, self.sets.models, load_params, on_cpu=self.sets.on_cpu, provider=self.sets.provider(found)
        )
        plan = self._adapted(plan, load_params, found.content.model.transformer())
        found, plan = self._with_merged_set(found, plan)
        try:
            manifests = checked_manifests(
                found.content,
                self.sets.models,
                plan.size,
                plan.variant,
                vace=plan.vace is not None,
                provider=plan.provider,
            )
        except EngineError as error:
            raise ServingError(str(error)) from error
        assert spec.loop is not None, f"pipeline '{spec.id}' has no engines"
        reason = _why_engines(found.content, plan) if backend == "auto" else _ASKED
        return EngineLoad(plan, found.content, manifests, spec.loop, reason)

    def expected(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> CheckpointLoad:
        """How a checkpoint would be loaded if it were here. Raises ServingError."""
        if self.checkpoints is None:
            raise ServingError(_NO_CHECKPOINTS.reason or "")
        plan = self.checkpoints.planned(spec, load_params)
        sizes = self.checkpoints.sizes(spec, load_params["vae_type"])
        return CheckpointLoad(plan, spec, sizes, spec.loop.vae_types if spec.loop else ())

    def _prefers_checkpoint(self, spec: PipelineSpec) -> bool:
        checkpoints = self.checkpoints
        if checkpoints is None or not checkpoints.has(spec):
            return False
        if not self.sets.availability(spec).available:
            return True
        return checkpoints.on_gpu and not self.sets.has_plans(spec) and not self.sets.has_compiled(spec)

    def _why_checkpoint(self, spec: PipelineSpec) -> str:
        """Why it is preferred."""
        if not self.sets.availability(spec).available:
            return "the weights are here, and no engines"
        return "the weights run on the GPU, the engines that are here only on the CPU"

    def _fills_in(self, spec: PipelineSpec) -> bool:
        """Whether the checkpoint takes what no engines are built for."""
        return self.checkpoints is not None and self.checkpoints.has(spec) and self.sets.has_real(spec)

    def _checkpoint(self, spec: PipelineSpec, load_params: Mapping[str, Any], reason: str) -> CheckpointLoad:
        if self.checkpoints is None:
            raise ServingError(_NO_CHECKPOINTS.reason or "")
        plan = self.checkpoints.plan(spec, load_params)
        sizes = self.checkpoints.sizes(spec, load_params["vae_type"], vace=plan.vace is not None)
        plan = self._adapted(plan, load_params, sizes.transformer)
        sizes = replace(sizes, adapter_rank=MOST_RANK if plan.adapted else 0)
        vae_types = self.checkpoints.availability(spec).vae_types
        return CheckpointLoad(plan, spec, sizes, vae_types, reason)

    def _with_merged_set(self, found: FoundSet, plan: LoadPlan) -> tuple[FoundSet, LoadPlan]:
        """The set that has the files in its weights, where Triton runs engines; if it is not there, the same.

        Raises ServingError where it cannot be made.
        """
        if plan.backend != "triton" or not plan.merged:
            return found, plan
        if self.merger is None:
            raise ServingError(f"LoRA files cannot be merged into engines that Triton runs. {INSTEAD}")
        merged = self.merger.merged.find(found, loras_of(plan.merged))
        if merged is None:
            self.merger.require_tools(found)
            return found, plan
        return merged, plan.model_copy(update={"engine_set": merged.directory, "adapters": plan.beside})

    def _adapted(
        self, plan: LoadPlan, load_params: Mapping[str, Any], config: TransformerConfig | None
    ) -> LoadPlan:
        """The plan with the LoRA files of the load. config: of the transformer; None: nobody can tell."""
        if not load_params.get("loras") and not live_adapters(load_params):
            return plan
        if self.adapters is None:
            raise ServingError("This server has no directory of LoRA files: load without 'loras'.")
        if config is None:
            raise ServingError(
                f"The engines '{plan.set_directory.name}' were exported by a version without LoRA. Run "
                "wanstream-export again, or load without 'loras'."
            )
        adapters = self.adapters.planned(load_params, config)
        if plan.provider == "rtx" and not all(adapter.runtime for adapter in adapters):
            raise ServingError(
                "LoRA files cannot be merged into engines that TensorRT for RTX has compiled: load with "
                "merge_mode runtime_peft, or with 'backend' pytorch."
            )
        return plan.model_copy(update={"adapters": adapters, "adapted": live_adapters(load_params)})


_ASKED = "the load asks for it"


def _why_engines(engines: EngineSet, plan: LoadPlan) -> str:
    """Why they are preferred to a checkpoint."""
    if plan.gpus:
        return "plans are built for the GPU"
    if plan.provider == "rtx":
        return "the engines are compiled by TensorRT for RTX for this GPU"
    if plan.provider == "cuda":
        return "engines are here, and ONNX Runtime computes on the GPU"
    return "engines of the demonstration are here" if engines.demo else "engines for the CPU are here"


_NO_CHECKPOINTS = Availability(
    False, "This server has no directory of models: load without the parameter 'backend'."
)


def plan_load(
    found: FoundSet,
    models: Path,
    load_params: Mapping[str, Any],
    *,
    on_cpu: bool,
    provider: Provider = "cpu",
) -> LoadPlan:
    """The plan of a load of engines, before memory is looked at.

    models: directory of the engines' Triton models. on_cpu: Triton is the embedded one, without TensorRT.
    provider: of ONNX Runtime, if that runs them.
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
        provider=provider if backend == "onnxruntime" else "cpu",
        base_seed=load_params["base_seed"],
        loop={name: load_params[name] for name in LOAD_CHOICES if name in load_params},
        vace=VacePlan.of(load_params) if found.content.branch else None,
    )


def placement_of(plan: LoadPlan) -> Placement:
    """The memory that a load of engines goes into."""
    if plan.gpus:
        return GPU
    if plan.provider != "cpu":
        return IN_PROCESS_ON_GPU
    return IN_PROCESS if plan.backend == "onnxruntime" else MODEL_PROCESSES


def served_plan(
    plan: LoadPlan, engines: EngineSet, manifests: Mapping[str, EngineManifest], chosen: Fit
) -> ServedPlan:
    """What the status shows of a load: without paths, which are nobody's business outside this machine.

    manifests: of all its engines, by name.
    """
    gpus = plan.gpus or (0,)
    device = f"cuda:{','.join(map(str, gpus))}" if plan.computes_on_gpu else "cpu"
    provider = None if plan.gpus else plan.provider
    return ServedPlan(
        engine_set=engines.name,
        engines=[
            ServedEngine(name, plan.backend, plan.variant, device, manifest.bytes, provider)
            for name, manifest in manifests.items()
        ],
        make_room=list(plan.make_room),
        sessions=chosen.sessions,
        memory=_served_memory(chosen),
        precision=engines.precision,
    )


def _served_memory(chosen: Fit) -> ServedMemory:
    memory = chosen.plan
    return ServedMemory(memory.placement.memory, memory.total(), memory.per_session, dict(memory.parts()))
