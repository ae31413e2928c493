"""From an engine set on disk to a model that streams; where its engines run is the caller's choice."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from streaming.embedding_cache import EmbeddingCache
from streaming.engine_set import ENGINE_SET, MODELS, ON_DEMAND, SET, TOKENIZER, VaeSet, read_engine_set
from streaming.engines import BatchLimit, Engine, Engines, OrtEngine, TritonEngine, VaeEngines
from streaming.holding_engine import HoldingEngine
from streaming.keeping_engine import BeginningEngine, KeepingEngine
from streaming.machine import Machine
from streaming.manifest import (
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
from streaming.memory_plan import engines_that_make_room, read_manifests
from streaming.model import ModelSizes, StreamModel
from streaming.model_pipeline import ModelPipeline
from streaming.on_demand import EngineOnDemand
from streaming.plans import check_plan, models_of, serves_plan
from streaming.prompt_encoder import PromptEncoder
from streaming.records import EngineError
from streaming.sessions import LoadContext, ModelRunner
from streaming.specs import LOAD_CHOICES, PipelineSpec
from streaming.text import PromptTokenizer
from streaming.video import FrameGroups

PROMPTS: Final = "prompts"  # directory of the prompt embeddings, beside that of the engines' models
CPU: Final = torch.device("cpu")
_DTYPES: Final = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,  # inputs and outputs of a quantised transformer
}


class Place(Protocol):
    """Makes an engine of a model repository ready to run."""

    def __call__(self, name: str, *, then: Engine | None = None, **facts: object) -> Engine:
        """then: the engine that goes on with this one's caches. facts: what the engine's manifest has to say.

        Raises EngineError if it does not.
        """


def in_process(models: Path, threads: int = 1) -> Place:
    """Engines of the model repository `models`, in ONNX Runtime in this process."""

    def place(name: str, *, then: Engine | None = None, **facts: object) -> Engine:
        directory = engine_directory(models, name)
        manifest = read_manifest(directory)
        check_facts(manifest, facts)
        check_files(directory, manifest)
        check_runs_on_cpu(manifest)
        return in_profile(OrtEngine(directory / ONNX_FILE, threads), manifest)

    return place


def served(
    models: Path, runner: ModelRunner, device: torch.device = CPU, make_room: Sequence[str] = ()
) -> Place:
    """Engines of the model repository `models`, as models of the Triton server of this process.

    device      where their inputs and outputs are
    make_room   engines that are unloaded while the text encoder is in memory; none: it is always there
    """
    machine = Machine.here()

    def place(name: str, *, then: Engine | None = None, **facts: object) -> Engine:
        directory = engine_directory(models, name)
        manifest = read_manifest(directory)
        check_facts(manifest, facts)
        if isinstance(then, KeepingEngine) and then.begins_streams:
            return BeginningEngine(manifest, then)
        if serves_plan(directory):
            check_plan(directory, manifest, machine)
        if make_room and manifest.kind == "text_encoder":
            encoder = in_profile(TritonEngine(manifest, runner, device), manifest)
            return EngineOnDemand(encoder, name, runner, make_room)
        if not runner.is_ready(name):
            raise EngineError(
                f"Engine '{name}' is not loaded. Load the pipeline again; Triton's log tells why."
            )
        if serves_plan(directory):
            return in_profile(TritonEngine(manifest, runner, device), manifest)
        return onnxruntime_engine(manifest, runner)

    return place


def onnxruntime_engine(manifest: EngineManifest, runner: ModelRunner) -> Engine:
    """An engine of the server that is a process on the CPU: what need not travel to it and back does not."""
    if manifest.keeps_caches:
        return KeepingEngine(manifest, runner)
    if manifest.holds_inputs:
        return HoldingEngine(manifest, runner)
    return in_profile(TritonEngine(manifest, runner), manifest)


def in_profile(engine: Engine, manifest: EngineManifest) -> Engine:
    """The engine, called with no larger batch than its profiles have: a plan refuses others."""
    largest = manifest.largest_sizes().get("B")
    return engine if largest is None else BatchLimit(engine, largest)


def open_model(
    directory: Path,
    spec: PipelineSpec,
    place: Place,
    size: tuple[int, int] | None = None,
    device: torch.device = CPU,
    cache: EmbeddingCache | None = None,
) -> StreamModel:
    """All that the streams of a pipeline share.

    directory   of the engine set
    size        height and width of the pictures in pixels; None: the set's default
    device      where caches and latents are, in the transformer's own type
    cache       of prompt embeddings; None: one in memory
    Raises WanstreamError when the set is absent, is another pipeline's, or has no engines of this size.
    """
    engines = read_engine_set(directory)
    if engines.pipeline != spec.id or spec.loop is None:
        raise EngineError(
            f"'{directory / SET}' is for pipeline '{engines.pipeline}', not '{spec.id}'. "
            f"Run: wanstream-export {spec.id}."
        )
    height, width = size or (engines.vae[0].height, engines.vae[0].width)
    vae = engines.vae_for(height, width)
    facts = engines.model
    groups = FrameGroups(
        engines.frames.first, engines.frames.later, engines.frames.repeat_last, engines.frames.at_once
    )
    tokenizer = PromptTokenizer.from_directory(directory / TOKENIZER, facts.text_len)
    return StreamModel(
        spec=engines.built_for(spec.loop),
        engines=Engines(
            place(engines.transformer, kind="transformer", pipeline=spec.id, layers=facts.layers),
            place(engines.text_kv, kind="text_kv", pipeline=spec.id, layers=facts.layers),
            _vae(vae, groups, place),
        ),
        encode_prompts=PromptEncoder(
            tokenizer,
            place(engines.text_encoder, kind="text_encoder", text_len=facts.text_len),
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
    )


def served_pipeline(spec: PipelineSpec) -> Callable[[LoadContext], ModelPipeline]:
    """For `1/model.py` of a pipeline's Triton model: loads it from engines on the same server."""

    def load(context: LoadContext) -> ModelPipeline:
        given = context.parameters
        models, engine_set = Path(_needed(given, MODELS)), Path(_needed(given, ENGINE_SET))
        device = _device(models, engine_set)
        size = (int(given["height"]), int(given["width"])) if {"height", "width"} <= given.keys() else None
        others: list[str] = []
        if given.get(ON_DEMAND) == "true":
            content = read_engine_set(engine_set)
            manifests = read_manifests(models, models_of(content, models, size))
            others = engines_that_make_room(content, manifests)
        place = served(models, context.models, device, others)
        cache = prompt_cache(models, engine_set)
        model = open_model(engine_set, with_choices(spec, given), place, size, device, cache)
        return ModelPipeline(spec, model, int(given.get("base_seed", spec.base_seed)))

    return load


def prompt_cache(models: Path, directory: Path) -> EmbeddingCache:
    """The embeddings of earlier prompts, beside the engines: a place that whoever runs them can reach.

    models: directory of the engines' Triton models. directory: of the engine set.
    """
    engines = read_engine_set(directory)
    encoder = read_manifest(engine_directory(models, engines.text_encoder))
    tokenizer = [file_info(path).sha256 for path in sorted((directory / TOKENIZER).iterdir())]
    identity = fingerprint([encoder.fingerprint, tokenizer, engines.model.text_len])
    return EmbeddingCache(identity, models.parent / PROMPTS)


def _device(models: Path, engine_set: Path) -> torch.device:
    """The GPU where plans run, so that caches stay there; the CPU for ONNX Runtime."""
    transformer = engine_directory(models, read_engine_set(engine_set).transformer)
    return torch.device("cuda", 0) if serves_plan(transformer) and torch.cuda.is_available() else CPU


def with_choices(spec: PipelineSpec, given: Mapping[str, str]) -> PipelineSpec:
    """The spec with what a load chose of its loop; values are JSON."""
    chosen: dict[str, Any] = {name: json.loads(given[name]) for name in LOAD_CHOICES if name in given}
    return spec if spec.loop is None else replace(spec, loop=spec.loop.chosen(chosen))


def _needed(parameters: Mapping[str, str], name: str) -> str:
    if name not in parameters:
        raise EngineError(f"The load has no parameter '{name}': the gateway has to name it.")
    return parameters[name]


def _vae(names: VaeSet, groups: FrameGroups, place: Place) -> VaeEngines:
    size: dict[str, Any] = {"height": names.height, "width": names.width}
    encoder_next = place(names.encoder_next, kind="vae_encoder_next", **size)
    decoder_next = place(names.decoder_next, kind="vae_decoder_next", **size)
    return VaeEngines(
        place(names.encoder_first, then=encoder_next, kind="vae_encoder_first", **size),
        encoder_next,
        place(names.decoder_first, then=decoder_next, kind="vae_decoder_first", **size),
        decoder_next,
        groups,
    )
