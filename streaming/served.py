"""From an engine set on disk to a model that streams; where its engines run is the caller's choice."""

from collections.abc import Callable
from pathlib import Path

from streaming.embedding_cache import EmbeddingCache
from streaming.engine_set import TOKENIZER, EngineSet, VaeSet
from streaming.engines import Engine, Engines, OrtEngine, TritonEngine, VaeEngines
from streaming.manifest import ONNX_FILE, EngineError, check_files, read_manifest
from streaming.model import ModelSizes, StreamModel
from streaming.prompt_encoder import PromptEncoder
from streaming.sessions import ModelRunner
from streaming.specs import LoopSpec
from streaming.text import PromptTokenizer
from streaming.video import FrameGroups

Place = Callable[[str], Engine]  # name of an engine -> the engine, ready to run


def in_process(models: Path, threads: int = 1) -> Place:
    """Engines of the model repository `models`, in ONNX Runtime in this process."""

    def place(name: str) -> Engine:
        directory = _version(models, name)
        check_files(directory, read_manifest(directory))
        return OrtEngine(directory / ONNX_FILE, threads)

    return place


def served(models: Path, runner: ModelRunner) -> Place:
    """Engines of the model repository `models`, as models of the Triton server of this process."""

    def place(name: str) -> Engine:
        manifest = read_manifest(_version(models, name))
        if not runner.is_ready(name):
            raise EngineError(
                f"Engine '{name}' is not loaded. Load the pipeline again; Triton's log tells why."
            )
        return TritonEngine(manifest, runner)

    return place


def open_model(
    directory: Path, engines: EngineSet, loop: LoopSpec, height: int, width: int, place: Place
) -> StreamModel:
    """All that the streams of a pipeline share.

    directory       of the engine set; its tokenizer is there
    loop            of the pipeline
    height, width   of the pictures, in pixels
    Raises EngineError when the set has no engines of this size, or they do not fit.
    """
    vae = engines.vae_for(height, width)
    facts = engines.model
    groups = FrameGroups(engines.frames.first, engines.frames.later, engines.frames.repeat_last)
    tokenizer = PromptTokenizer.from_directory(directory / TOKENIZER, facts.text_len)
    return StreamModel(
        spec=loop,
        engines=Engines(place(engines.transformer), place(engines.text_kv), _vae(vae, groups, place)),
        encode_prompts=PromptEncoder(tokenizer, place(engines.text_encoder), EmbeddingCache(engines.name)),
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


def _vae(names: VaeSet, groups: FrameGroups, place: Place) -> VaeEngines:
    return VaeEngines(
        place(names.encoder_first),
        place(names.encoder_next),
        place(names.decoder_first),
        place(names.decoder_next),
        groups,
    )


def _version(models: Path, name: str) -> Path:
    return models / name / "1"
