"""From an engine set on disk to a model that streams; where its engines run is the caller's choice."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from streaming.adapters.stack import RuntimeAdapter, Stacker
from streaming.conditioning.embedding_cache import EmbeddingCache
from streaming.conditioning.prompt_encoder import PromptEncoder
from streaming.conditioning.tokenizer import PromptTokenizer
from streaming.engines.bound import CPU, OrtPlace
from streaming.engines.engine import (
    BatchLimit,
    BranchEngines,
    Engine,
    Engines,
    ReopenableEngine,
    TritonEngine,
    VaeEngines,
)
from streaming.engines.engine_config import engine_config
from streaming.engines.engine_set import SET, TOKENIZER, EngineSet, VaeSet, read_engine_set
from streaming.engines.load_plan import LoadPlan, VacePlan
from streaming.engines.manifest import (
    ONNX_FILE,
    EngineManifest,
    check_facts,
    check_files,
    check_runs_on_cpu,
    engine_directory,
    file_info,
    fingerprint,
    read_manifest,
)
from streaming.engines.on_demand import EngineOnDemand
from streaming.engines.ort import GpuProviders, Provider
from streaming.engines.plans import check_plan
from streaming.engines.records import EngineError
from streaming.engines.rtx import check_compiled
from streaming.memory.machine import Machine
from streaming.network.inputs import group_of
from streaming.network.model import StreamModel
from streaming.network.transformer import ModelSizes
from streaming.network.video import FrameGroups
from streaming.specs import PipelineSpec
from streaming.triton.model_pipeline import ModelPipeline
from streaming.triton.sessions import LoadContext, ModelRunner

PROMPTS: Final = "prompts"  # directory of the prompt embeddings, beside that of the engines' models
JIT: Final = "rtx_cache"  # directory of what TensorRT for RTX compiles at the first load, beside it too
_DTYPES: Final = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,  # inputs and outputs of a quantised transformer
}

Weights = Mapping[str, Mapping[str, Any]]  # arrays by engine and by their names in its graph


class OpenEngine(Protocol):
    """Makes an engine of a model repository ready to run."""

    def __call__(self, name: str, **facts: object) -> Engine:
        """facts: what the engine's manifest has to say. Raises EngineError if it does not."""


class InProcess:
    """Opens engines of a model repository in ONNX Runtime in this process."""

    def __init__(
        self,
        models: Path,
        threads: int = 1,
        make_room: tuple[str, ...] = (),
        weights: Weights | None = None,
        place: OrtPlace | None = None,
    ) -> None:
        """threads: 0 is one per core.

        make_room: engines that are closed while the text encoder is open; none: it is always open
        weights: arrays in place of those in the files
        place: None: the CPU
        """
        self._models, self._threads, self._make_room = models, threads, make_room
        self._weights, self._place = weights or {}, place or OrtPlace()
        self._engines: dict[str, ReopenableEngine] = {}

    def __call__(self, name: str, **facts: object) -> Engine:
        directory = engine_directory(self._models, name)
        manifest = read_manifest(directory)
        check_facts(manifest, facts)
        check_files(directory, manifest)
        path = runnable_graph(directory, manifest, self._place.provider)
        weights = self._weights.get(name)
        engine = ReopenableEngine(manifest, path, self._threads, weights, self._place)
        self._engines[name] = engine
        if self._make_room and manifest.kind == "text_encoder":
            return EngineOnDemand(in_profile(engine, manifest), name, self, self._make_room)
        engine.open()
        return in_profile(engine, manifest)

    def load(self, name: str) -> None:
        self._engines[name].open()

    def unload(self, name: str) -> None:
        self._engines[name].close()


def runnable_graph(directory: Path, manifest: EngineManifest, provider: Provider) -> Path:
    """The file that this machine's ONNX Runtime runs. Raises EngineError when it cannot run the engine.

    directory: of the engine's files
    """
    if provider == "rtx":
        here = GpuProviders.here()
        return check_compiled(directory, manifest, here.target or "this GPU", here.rtx)
    if provider == "cpu":
        check_runs_on_cpu(manifest)
    return directory / ONNX_FILE


class InTriton:
    """Opens engines of a model repository that are models of the Triton server of this process."""

    def __init__(self, plan: LoadPlan, runner: ModelRunner, device: torch.device = CPU) -> None:
        """plan: of the load. device: where inputs and outputs of the engines are."""
        self._plan, self._runner, self._device = plan, runner, device
        self._machine = Machine.here()

    def __call__(self, name: str, **facts: object) -> Engine:
        plan, manifest = self._plan, self._manifest(name)
        check_facts(manifest, facts)
        if plan.gpus:
            check_plan(engine_directory(plan.models, name), manifest, self._machine)
        engine = in_profile(TritonEngine(manifest, self._runner, self._device), manifest)
        if plan.make_room and manifest.kind == "text_encoder":
            return EngineOnDemand(engine, name, self, plan.make_room)
        if not self._runner.is_ready(name):
            raise EngineError(
                f"Engine '{name}' is not loaded. Load the pipeline again; Triton's log tells why."
            )
        return engine

    def load(self, name: str) -> None:
        """As the gateway does: what is in the engine's `config.pbtxt` may be another set's choice."""
        config = engine_config(self._manifest(name), self._plan.variant, gpus=self._plan.gpus)
        self._runner.load(name, json.dumps(config))

    def unload(self, name: str) -> None:
        self._runner.unload(name)

    def _manifest(self, name: str) -> EngineManifest:
        return read_manifest(engine_directory(self._plan.models, name))


def in_profile(engine: Engine, manifest: EngineManifest) -> Engine:
    """The engine, called with no larger batch than its profiles have: a plan refuses others."""
    largest = manifest.largest_sizes().get("B")
    return engine if largest is None else BatchLimit(engine, largest)


def open_model(
    directory: Path,
    spec: PipelineSpec,
    open_engine: OpenEngine,
    size: tuple[int, int] | None = None,
    device: torch.device = CPU,
    cache: EmbeddingCache | None = None,
    vace: VacePlan | None = None,
) -> StreamModel:
    """All that the streams of a pipeline share.

    directory   of the engine set
    size        height and width of the pictures in pixels; None: the set's default
    device      where caches and latents are, in the transformer's own type
    cache       of prompt embeddings; None: one in memory
    vace        how the VACE branch is used; None: it is not opened
    Raises WanstreamError when the set is absent, is another pipeline's, or has no engines of this size.
    """
    engines = read_engine_set(directory)
    if engines.pipeline != spec.id or spec.loop is None:
        raise EngineError(
            f"'{directory / SET}' is for pipeline '{engines.pipeline}', not '{spec.id}'. "
            f"Run: wanstream-export {spec.id}."
        )
    height, width = size or (engines.vae[0].height, engines.vae[0].width)
    vae_names = engines.vae_for(height, width)
    facts = engines.model
    groups = FrameGroups(
        engines.frames.first, engines.frames.later, engines.frames.repeat_last, engines.frames.at_once
    )
    tokenizer = PromptTokenizer.from_directory(directory / TOKENIZER, facts.text_len)
    transformer = open_engine(engines.transformer, kind="transformer", pipeline=spec.id, layers=facts.layers)
    require_known_inputs(engines.transformer, transformer, spec.id)
    return StreamModel(
        spec=engines.built_for(spec.loop),
        engines=Engines(
            transformer,
            open_engine(engines.text_kv, kind="text_kv", pipeline=spec.id, layers=facts.layers),
            _vae(vae_names, groups, open_engine),
            None if vace is None else _branch(engines, spec.id, open_engine),
        ),
        encode_prompts=PromptEncoder(
            tokenizer,
            open_engine(engines.text_encoder, kind="text_encoder", text_len=facts.text_len),
            cache or EmbeddingCache(engines.name),
        ),
        sizes=ModelSizes(
            facts.layers,
            facts.heads,
            facts.head_dim,
            facts.freq_dim,
            facts.channels,
            facts.patch,
            facts.spatial_factor,
        ),
        height=height,
        width=width,
        cache_frames=engines.cache_frames,
        dtype=_DTYPES[engines.precision],
        device=device,
        shared_encoder_cache=shares_encoder_cache(vace or VacePlan(), groups),
        vace_padding=vace is None or vace.pad_attention,
    )


def shares_encoder_cache(vace: VacePlan, groups: FrameGroups) -> bool:
    """Whether both clips of a VACE context go through one cache; for tiny autoencoders there are two."""
    if vace.encoder_cache is None:
        return not groups.repeat_last
    return vace.encoder_cache == "shared"


def _branch(engines: EngineSet, pipeline: str, open_engine: OpenEngine) -> BranchEngines:
    """Raises EngineError where the set has none."""
    names = engines.branch
    if names is None:
        raise EngineError(
            f"Engine set '{engines.name}' has no VACE branch. Load without it, or: "
            f"wanstream-export {pipeline} --vace."
        )
    facts = {"pipeline": pipeline, "vace_blocks": names.blocks}
    transformer = open_engine(names.transformer, kind="transformer", **facts)
    require_known_inputs(names.transformer, transformer, pipeline)
    return BranchEngines(transformer, open_engine(names.text_kv, kind="text_kv", **facts))


def require_known_inputs(name: str, transformer: Engine, pipeline: str) -> None:
    """Raises EngineError where nothing makes an input of the graph: another version has exported it."""
    unknown = [tensor for tensor in transformer.inputs if group_of(tensor) is None]
    if unknown:
        raise EngineError(
            f"Engine '{name}' takes inputs that this version of wanstream does not have: "
            f"{', '.join(unknown)}. Export it again: wanstream-export {pipeline}."
        )


def served_pipeline(spec: PipelineSpec) -> Callable[[LoadContext], ModelPipeline]:
    """For `1/model.py` of a pipeline's Triton model: obeys the plan that the gateway has made."""

    def load(context: LoadContext) -> ModelPipeline:
        plan = LoadPlan.of(context.parameters)
        chosen = with_choices(spec, plan.loop)
        if plan.backend == "pytorch":
            # Here, not above: it comes with `export`, which builds upon this package.
            from export.pytorch.pipeline import load_pipeline

            return load_pipeline(chosen, plan)
        device = torch.device("cuda", 0) if plan.computes_on_gpu and torch.cuda.is_available() else CPU
        cache = prompt_cache(plan.models, plan.set_directory)
        open_engine = engine_opener(plan, context.models, device)
        model = open_model(plan.set_directory, chosen, open_engine, plan.size, device, cache, plan.vace)
        config = read_engine_set(plan.set_directory).model.transformer()
        stacker = Stacker(config, model.dtype, model.device) if plan.adapted and config else None
        return adapted_pipeline(ModelPipeline(chosen, model, plan.base_seed, stacker=stacker), plan)

    return load


def adapted_pipeline(pipeline: ModelPipeline, plan: LoadPlan) -> ModelPipeline:
    """The pipeline with the LoRA files of a load beside its weights. Raises AdapterError."""
    if plan.adapted:
        pipeline.put_beside([RuntimeAdapter(a.path, a.name, a.scale) for a in plan.beside])
    return pipeline


def engine_opener(plan: LoadPlan, runner: ModelRunner, device: torch.device) -> OpenEngine:
    """Where the engines of a load run."""
    if plan.backend == "onnxruntime":
        place = None if plan.provider == "cpu" else OrtPlace.on_gpu(plan.provider, plan.models.parent / JIT)
        return InProcess(plan.models, 0, plan.make_room, _adapted(plan), place)
    return InTriton(plan, runner, device)


def _adapted(plan: LoadPlan) -> Weights:
    """The weights that the load's LoRA files change. Raises WanstreamError."""
    if not plan.merged:
        return {}
    # Here, not above: it comes with `export`, which builds upon this package.
    from export.checkpoints.lora_merge import ScaledAdapter
    from export.onnx.adapters import merged_weights

    engines = read_engine_set(plan.set_directory)
    names: tuple[str, ...] = (engines.transformer, engines.text_kv)
    if plan.vace is not None and engines.branch is not None:
        names = (*names, engines.branch.transformer, engines.branch.text_kv)
    graphs = [engine_directory(plan.models, name) / ONNX_FILE for name in names]
    adapters = [ScaledAdapter(adapter.path, adapter.scale) for adapter in plan.merged]
    return dict(zip(names, merged_weights(graphs, adapters), strict=True))


def prompt_cache(models: Path, directory: Path) -> EmbeddingCache:
    """The embeddings of earlier prompts, beside the engines: a place that whoever runs them can reach.

    models: directory of the engines' Triton models. directory: of the engine set.
    """
    engines = read_engine_set(directory)
    encoder = read_manifest(engine_directory(models, engines.text_encoder))
    tokenizer = [file_info(path).sha256 for path in sorted((directory / TOKENIZER).iterdir())]
    identity = fingerprint([encoder.fingerprint, tokenizer, engines.model.text_len])
    return EmbeddingCache(identity, models.parent / PROMPTS)


def with_choices(spec: PipelineSpec, chosen: Mapping[str, Any]) -> PipelineSpec:
    """The spec with what a load chose of its loop; other load parameters are ignored."""
    return spec if spec.loop is None else replace(spec, loop=spec.loop.chosen(chosen))


def _vae(names: VaeSet, groups: FrameGroups, open_engine: OpenEngine) -> VaeEngines:
    size: dict[str, Any] = {"height": names.height, "width": names.width}
    return VaeEngines(
        open_engine(names.encoder_first, kind="vae_encoder_first", **size),
        open_engine(names.encoder_next, kind="vae_encoder_next", **size),
        open_engine(names.decoder_first, kind="vae_decoder_first", **size),
        open_engine(names.decoder_next, kind="vae_decoder_next", **size),
        groups,
    )
