"""From an engine set on disk to a model that streams; where its engines run is the caller's choice."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from streaming.embedding_cache import EmbeddingCache
from streaming.engine_set import ENGINE_SET, MODELS, SET, TOKENIZER, VaeSet, read_engine_set
from streaming.engines import Engine, Engines, OrtEngine, TritonEngine, VaeEngines
from streaming.keeping_engine import KeepingEngine
from streaming.manifest import ONNX_FILE, check_facts, check_files, engine_directory, read_manifest
from streaming.model import ModelSizes, StreamModel
from streaming.model_pipeline import ModelPipeline
from streaming.prompt_encoder import PromptEncoder
from streaming.records import EngineError
from streaming.sessions import LoadContext, ModelRunner
from streaming.specs import PipelineSpec
from streaming.text import PromptTokenizer
from streaming.video import FrameGroups


class Place(Protocol):
    """Makes an engine of a model repository ready to run."""

    def __call__(self, name: str, **facts: object) -> Engine:
        """facts: what the engine's manifest has to say. Raises EngineError if it does not."""


def in_process(models: Path, threads: int = 1) -> Place:
    """Engines of the model repository `models`, in ONNX Runtime in this process."""

    def place(name: str, **facts: object) -> Engine:
        directory = engine_directory(models, name)
        manifest = read_manifest(directory)
        check_facts(manifest, facts)
        check_files(directory, manifest)
        return OrtEngine(directory / ONNX_FILE, threads)

    return place


def served(models: Path, runner: ModelRunner) -> Place:
    """Engines of the model repository `models`, as models of the Triton server of this process."""

    def place(name: str, **facts: object) -> Engine:
        manifest = read_manifest(engine_directory(models, name))
        check_facts(manifest, facts)
        if not runner.is_ready(name):
            raise EngineError(
                f"Engine '{name}' is not loaded. Load the pipeline again; Triton's log tells why."
            )
        if manifest.keeps_caches and manifest.tensorrt is None:
            return KeepingEngine(manifest, runner)
        return TritonEngine(manifest, runner)

    return place


def open_model(
    directory: Path, spec: PipelineSpec, place: Place, size: tuple[int, int] | None = None
) -> StreamModel:
    """All that the streams of a pipeline share.

    directory   of the engine set
    size        height and width of the pictures in pixels; None: the set's default
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
    groups = FrameGroups(engines.frames.first, engines.frames.later, engines.frames.repeat_last)
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
            EmbeddingCache(engines.name),
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
    )


def served_pipeline(spec: PipelineSpec) -> Callable[[LoadContext], ModelPipeline]:
    """For `1/model.py` of a pipeline's Triton model: loads it from engines on the same server."""

    def load(context: LoadContext) -> ModelPipeline:
        given = context.parameters
        place = served(Path(_needed(given, MODELS)), context.models)
        size = (int(given["height"]), int(given["width"])) if {"height", "width"} <= given.keys() else None
        model = open_model(Path(_needed(given, ENGINE_SET)), spec, place, size)
        return ModelPipeline(spec, model, int(given.get("base_seed", spec.base_seed)))

    return load


def _needed(parameters: Mapping[str, str], name: str) -> str:
    if name not in parameters:
        raise EngineError(f"The load has no parameter '{name}': the gateway has to name it.")
    return parameters[name]


def _vae(names: VaeSet, groups: FrameGroups, place: Place) -> VaeEngines:
    size = {"height": names.height, "width": names.width}
    return VaeEngines(
        place(names.encoder_first, kind="vae_encoder_first", **size),
        place(names.encoder_next, kind="vae_encoder_next", **size),
        place(names.decoder_first, kind="vae_decoder_first", **size),
        place(names.decoder_next, kind="vae_decoder_next", **size),
        groups,
    )
