"""One export: every component of a pipeline to engines, then the set that names them.

Engines that are there, undamaged and made from the same files by the same code, are kept: an export that was
interrupted goes on where it stopped, and pipelines share the engines that they have in common.
"""

import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

import export.fp8.quantization
import export.graphs
import export.onnx.onnx_export
import streaming.network.inputs
from export.fp8.calibration import record_stream
from export.fp8.quantization import FP8_OPS, ModelOpt, quantize_fp8
from export.graphs.signature import Signature
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae_graphs import Autoencoder
from export.onnx.jobs import DTYPES, Component, Graph, Request, components
from export.onnx.onnx_export import ALLOWED_OPS, OPSET, check_onnx, check_parity, export_onnx
from export.onnx.repository import write_onnxruntime_model
from export.onnx.store import EngineStore, Resources
from export.pytorch.pipeline import stream_sizes
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import TOKENIZER, TRANSFORMER_FILES, read_config, require_file
from streaming.conditioning.tokenizer import PromptTokenizer
from streaming.engines.demo import DEMO, read_demo
from streaming.engines.engine_set import (
    SET,
    BranchSet,
    EngineSet,
    FrameCuts,
    MergedLora,
    ModelFacts,
    VaeSet,
    merged_loras,
    read_engine_set,
)
from streaming.engines.engine_set import TOKENIZER as TOKENIZER_DIRECTORY
from streaming.engines.manifest import (
    MANIFEST,
    ONNX_FILE,
    VERSION_DIRECTORY,
    DType,
    EngineManifest,
    FileInfo,
    Quantization,
    TensorInfo,
    file_info,
    fingerprint,
)
from streaming.engines.records import EngineError
from streaming.memory.units import in_units
from streaming.network.inputs import TensorSpec

# Export needs the weights, the exporter's own tensors, and ONNX Runtime's copy for the parity check.
_MEMORY_FACTOR: Final = 3
_FP8_MEMORY_FACTOR: Final = 8  # weights in float32 here and in ModelOpt, and copies of both
_MEMORY_BASE_BYTES: Final = 500_000_000
_LONGEST_TEMPORARY_NAME: Final = 64  # bytes; a socket's path has 107, its own name included
_DTYPE_NAMES: Final[dict[torch.dtype, DType]] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
}

Say = Callable[[str], None]
Step = Callable[[int, int], None]  # engines that are finished, and how many there are to export


def _no_step(done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """An engine by its final name. The name holds a hash of all that it is made from."""

    name: str
    fingerprint: str
    component: Component
    sources: tuple[FileInfo, ...]
    graph: Graph


def export_pipeline(
    request: Request,
    store: EngineStore,
    say: Say,
    *,
    workers: int = 1,
    step: Step = _no_step,
    wait: bool = False,
    prune: bool = False,
    resources: Callable[[Path], Resources] = Resources.now,
    modelopt: ModelOpt | None = None,
) -> EngineSet:
    """Export what is missing of a pipeline's engines, and write the set.

    say         gets a line per step
    step        is called after each engine
    workers     processes that export at the same time; each loads the weights that it needs
    prune       remove engines that no set names any more, when this one is complete
    wait        for another export into the same directory, instead of raising
    resources   what the machine has left
    modelopt    for precision fp8; None: in this environment

    Raises WanstreamError: files that are absent or damaged, too little disk or memory, another export, a
    graph that breaks a rule. Engines that were finished before stay.
    """
    parts = components(request)
    modelopt = modelopt or ModelOpt()
    if any(part.request for part in parts):
        say(f"FP8 with {modelopt.version()}.")  # complain now, not after everything else
    with store.writing(wait=wait):
        say(f"Reading the checkpoints in {request.models} ...")
        planned = [engine for part in parts for engine in plan(part)]
        missing = [e for e in planned if store.find(e.name, e.fingerprint) is None]
        if missing and (other := made_otherwise(store, set_name(request))):
            say(
                f"The engines of '{set_name(request)}' were made by exporter {other}; this is "
                f"{exporter_version()}, which writes others. The old ones serve until these are complete."
            )
        _announce(parts, planned, missing, store, say, resources, workers)
        if workers > 1:
            _export_in_parallel(request, missing, store, say, workers, step, modelopt)
        else:
            _export_in_turn(missing, store, say, step, modelopt)
        config = read_config(request.models / TRANSFORMER_FILES[request.pipeline].config)
        vae = next(e.component for e in planned if e.graph.kind.startswith("vae")).load()
        result = engine_set(request, planned, config, vae)
        result = _served_as_before(result, store)
        _write_set(result, request, store)
        for name, size in store.prune() if prune else ():
            say(f"Removed {name}, which no set names: {in_units(size)}.")
    say(f"Engine set '{result.name}' is complete: {store.sets / result.name}")
    return result


def plan(component: Component) -> list[PlannedEngine]:
    """Names and fingerprints of a component's engines; reads the checkpoint files once, for their hashes."""
    sources = tuple(file_info(path) for path in component.sources)
    planned = []
    for graph in component.graphs:
        print_ = fingerprint(
            {
                "kind": graph.kind,
                "precision": component.precision,
                "sources": [source.sha256 for source in sources],
                "example": dict(graph.example),
                "profiles": [{k: v.model_dump() for k, v in p.items()} for p in graph.profiles],
                "facts": dict(graph.facts),
                "opset": OPSET,
                "exporter": exporter_version(),
            }
        )
        name = f"{graph.label}_{component.precision}_{print_[:8]}"
        planned.append(PlannedEngine(name, print_, component, sources, graph))
    return planned


@cache
def exporter_version() -> str:
    """Version of this package and a hash of what else decides what is written: other hash, other engines.

    That is the source of graphs, their inputs and their way to a file, and the versions of torch and onnx.
    """
    graphs = sorted(Path(export.graphs.__file__).parent.glob("*.py"))
    others = (
        export.onnx.onnx_export.__file__,
        export.fp8.quantization.__file__,
        streaming.network.inputs.__file__,
    )
    files = [*graphs, *map(Path, others)]
    parts = {path.name: path.read_text(encoding="utf-8") for path in files}
    # Without what follows the +: PyTorch for the CPU writes what PyTorch for CUDA writes.
    parts |= {name: version(name).partition("+")[0] for name in ("torch", "onnx")}
    return f"{version('wanstream')}+{fingerprint(parts)[:8]}"


def made_otherwise(store: EngineStore, name: str) -> str | None:
    """The version that made the engines of a set that is there, if that is not this one."""
    try:
        engines = read_engine_set(store.sets / name)
        made_by = {store.verified(engine, hashes=False).exporter_version for engine in engines.engines()}
    except EngineError:
        return None  # it is not there, or damaged: nobody misses it
    return ", ".join(sorted(made_by - {exporter_version()})) or None


def _announce(
    parts: tuple[Component, ...],
    planned: list[PlannedEngine],
    missing: list[PlannedEngine],
    store: EngineStore,
    say: Say,
    resources: Callable[[Path], Resources],
    workers: int,
) -> None:
    """Say how large things get, and refuse before it starts what cannot end well."""
    if not missing:
        say(f"All {len(planned)} engines are there and undamaged.")
        return
    sizes = {id(part): part.weight_bytes() for part in parts}
    wanted = [sizes[id(e.component)] * e.component.copies // len(e.component.graphs) for e in missing]
    memory = workers * (_MEMORY_BASE_BYTES + max(_memory_factor(e) * sizes[id(e.component)] for e in missing))
    kept = f", {len(planned) - len(missing)} are there" if len(missing) < len(planned) else ""
    say(
        f"{len(missing)} engines to export{kept}: about {in_units(sum(wanted))} of disk, "
        f"{in_units(memory)} of memory."
    )
    resources(store.root).check(sum(wanted), memory)


def _memory_factor(engine: PlannedEngine) -> int:
    return _MEMORY_FACTOR if engine.component.request is None else _FP8_MEMORY_FACTOR


def _export_in_turn(
    missing: list[PlannedEngine], store: EngineStore, say: Say, step: Step, modelopt: ModelOpt
) -> None:
    """One component after the other, so that only one is in memory."""
    numbers = {engine.name: i for i, engine in enumerate(missing, 1)}
    for part, engines in _by_component(missing):
        load = cache(part.load)
        for engine in engines:
            say(f"[{numbers[engine.name]}/{len(missing)}] {engine.name} ...")
            _export(engine, load, store, modelopt)
            step(numbers[engine.name], len(missing))


def _export_in_parallel(
    request: Request,
    missing: list[PlannedEngine],
    store: EngineStore,
    say: Say,
    workers: int,
    step: Step,
    modelopt: ModelOpt,
) -> None:
    """In processes of their own: tracing a small graph takes seconds of one core."""
    # Forked from a process that has imported, which takes as long as a graph, but never run anything: threads
    # of torch do not survive a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "onnxscript", "torch.export"])
    with _short_temporary_names(), ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        # The longest begin first: the transformer, then the last ones.
        first = [engine for engine in missing if engine.graph.kind == "transformer"]
        order = [*first, *(engine for engine in reversed(missing) if engine not in first)]
        jobs = {pool.submit(_export_by_name, request, e.name, store, modelopt): e for e in order}
        try:
            for number, job in enumerate(as_completed(jobs), 1):
                job.result()
                say(f"[{number}/{len(missing)}] {jobs[job].name}")
                step(number, len(missing))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _short_temporary_names() -> Iterator[None]:
    """For the socket by which workers are asked for: the system takes no long paths for these."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_TEMPORARY_NAME:
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


def _begin_worker() -> None:
    """One thread, and no life after the export: it holds the lock on the directory, and may be killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_export, daemon=True).start()


def _end_with_export() -> None:
    export = multiprocessing.parent_process()
    assert export is not None, "a worker has a parent"
    export.join()
    os._exit(1)


def _export_by_name(request: Request, name: str, store: EngineStore, modelopt: ModelOpt) -> None:
    engine = next(e for part in components(request) for e in plan(part) if e.name == name)
    _export(engine, engine.component.load, store, modelopt)


def _by_component(engines: list[PlannedEngine]) -> list[tuple[Component, list[PlannedEngine]]]:
    parts = {id(e.component): e.component for e in engines}
    return [(part, [e for e in engines if e.component is part]) for part in parts.values()]


def _export(engine: PlannedEngine, load: Callable[[], Any], store: EngineStore, modelopt: ModelOpt) -> None:
    """Write one engine's model directory. Nothing of it is there when this fails."""
    modules = load()
    module, signature = engine.graph.build(modules)
    with store.replacing(store.models / engine.name) as directory:
        files = directory / VERSION_DIRECTORY
        files.mkdir()
        path = files / ONNX_FILE
        dtype, form = DTYPES[engine.component.precision], engine.graph.facts["form"]
        export_onnx(module, signature, engine.graph.example, path, dtype, form)
        parity, quantization = None, None
        if engine.component.request is not None:
            quantization = _quantize(engine.component.request, modules, path, modelopt)
        if engine.component.precision == "fp32":
            parity = max(check_parity(path, module, signature, s) for s in parity_sizes(engine.graph))
        written = tuple(file_info(file) for file in sorted(files.glob(f"{ONNX_FILE}*")))
        manifest = manifest_of(engine, signature, written, parity, quantization)
        (files / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        write_onnxruntime_model(directory, files, manifest)


def _quantize(
    request: Request, modules: tuple[Transformer, TextKV], path: Path, modelopt: ModelOpt
) -> Quantization:
    """Make an exported bfloat16 transformer FP8. The modules are float32 afterwards."""
    transformer, text_kv = modules[0].float(), modules[1].float()
    with TemporaryDirectory(prefix="fp8-", dir=path.parent) as work:
        recorder = record_stream(request, transformer, text_kv, Path(work))
        assert recorder.held_out is not None, "the stream had no chunk between its first and its last"
        result = quantize_fp8(path, recorder.files, recorder.held_out, modelopt, Path(work))
    weights = [name for name, _ in transformer.named_parameters() if name.endswith("weight_t")]
    check_onnx(path, weights, ALLOWED_OPS | set(FP8_OPS))
    return result


def parity_sizes(graph: Graph) -> list[dict[str, int]]:
    """The smallest and the usual call of each profile; the largest would take the time of a whole window."""
    ends = [
        {axis: getattr(found, end) for axis, found in profile.items()}
        for profile in graph.profiles
        for end in ("min", "opt")
    ]
    return [sizes for i, sizes in enumerate(ends) if sizes not in ends[:i]] or [dict(graph.example)]


def manifest_of(
    engine: PlannedEngine,
    signature: Signature,
    files: tuple[FileInfo, ...],
    parity: float | None,
    quantization: Quantization | None = None,
) -> EngineManifest:
    """What is known about an engine of these files, the graph first."""
    dtype = DTYPES[engine.component.precision]

    def info(spec: TensorSpec) -> TensorInfo:
        own = torch.int64 if spec.integer else torch.float32 if spec.float32 else dtype
        return TensorInfo(name=spec.name, shape=spec.shape, dtype=_DTYPE_NAMES[own])

    return EngineManifest(
        name=engine.name,
        kind=engine.graph.kind,
        precision=engine.component.precision,
        fingerprint=engine.fingerprint,
        inputs=tuple(map(info, signature.inputs)),
        outputs=tuple(map(info, signature.outputs)),
        profiles=engine.graph.profiles,
        opset=OPSET,
        files=files,
        source_checkpoints=engine.sources,
        exporter_version=exporter_version(),
        parity=parity,
        quantization=quantization,
        **engine.graph.facts,
    )


def engine_set(
    request: Request, planned: list[PlannedEngine], config: TransformerConfig, vae: Autoencoder
) -> EngineSet:
    """The set of these engines; `vae` may be on the meta device."""
    names: Mapping[str, list[str]] = {
        e.graph.kind: [p.name for p in planned if p.graph.kind == e.graph.kind] for e in planned
    }
    vae_sets = tuple(
        VaeSet(
            height=height,
            width=width,
            encoder_first=names["vae_encoder_first"][i],
            encoder_next=names["vae_encoder_next"][i],
            decoder_first=names["vae_decoder_first"][i],
            decoder_next=names["vae_decoder_next"][i],
        )
        for i, (height, width) in enumerate(request.sizes)
    )
    about = read_demo(request.models) if request.demo and (request.models / DEMO).is_file() else None
    return EngineSet(
        name=set_name(request),
        pipeline=request.pipeline,
        vae_type=request.vae_type,
        precision=request.precision,
        demo=request.demo,
        note=about.note if about else "",
        examples=about.examples if about else (),
        window=request.loop.local_attn_size,
        cache_frames=request.loop.cache_frames,
        padding_keys=request.loop.padding_keys,
        adapters=request.adapters,
        loras=_merged_loras(request),
        model=ModelFacts(
            text_len=config.text_len,
            text_dim=config.text_dim,
            ffn_dim=config.ffn_dim,
            **asdict(stream_sizes(config, vae.spatial_factor)),
        ),
        frames=FrameCuts(
            first=vae.groups.first,
            later=vae.groups.later,
            repeat_last=vae.groups.repeat_last,
            at_once=vae.groups.later if request.form == "cpu" else None,
        ),
        text_encoder=names["text_encoder"][0],
        text_kv=names["text_kv"][0],
        transformer=names["transformer"][0],
        vae=vae_sets,
        branch=_branch(planned, names) if request.vace else None,
    )


def _branch(planned: list[PlannedEngine], names: Mapping[str, list[str]]) -> BranchSet:
    """The second transformer, which is the one with the VACE branch."""
    transformer, text_kv = names["transformer"][1], names["text_kv"][1]
    blocks = next(e.graph.facts["vace_blocks"] for e in planned if e.name == transformer)
    return BranchSet(transformer=transformer, text_kv=text_kv, blocks=blocks)


def set_name(request: Request) -> str:
    """Pipeline, precision and autoencoder; what is not the pipeline's own."""
    kind = "demo_" if request.demo else ""
    window = "" if request.window is None else f"_window{request.window}"
    padding = "" if request.padding_keys else "_unpadded"
    adapters = "_adapters" if request.adapters else ""
    merged = [lora.model_dump(exclude={"file"}) for lora in _merged_loras(request)]
    loras = f"_lora_{fingerprint(merged)[:8]}" if merged else ""
    name = f"{kind}{request.pipeline}_{request.precision}_{request.vae_type}"
    return f"{name}{window}{padding}{adapters}{loras}"


def _merged_loras(request: Request) -> tuple[MergedLora, ...]:
    """What is merged into the weights. Raises CheckpointError for a file that is not there."""
    for lora in request.loras:
        require_file(lora.path)
    return merged_loras((lora.path, lora.scale) for lora in request.loras)


def _served_as_before(result: EngineSet, store: EngineStore) -> EngineSet:
    """The set, with the choice that `wanstream-build` has made for these engines."""
    try:
        before = read_engine_set(store.sets / result.name)
    except EngineError:
        return result
    if before.engines() != result.engines():
        return result
    return result.model_copy(update={"serve_with": before.serve_with, "gpus": before.gpus})


def _write_set(result: EngineSet, request: Request, store: EngineStore) -> None:
    source = request.models / TOKENIZER
    PromptTokenizer.from_directory(source, result.model.text_len)  # complain now, not in Triton
    with store.replacing(store.sets / result.name) as directory:
        (directory / TOKENIZER_DIRECTORY).mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / TOKENIZER_DIRECTORY / name)
        (directory / SET).write_text(result.model_dump_json(indent=1), encoding="utf-8")
