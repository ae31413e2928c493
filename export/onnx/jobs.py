"""What there is to export: the checkpoints of a pipeline (wan.md 7) and the graphs that come from each."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import nn

from export.checkpoints.checkpoints import Checkpoint, checkpoint_shapes, load_weights, open_checkpoint
from export.checkpoints.load import (
    load_text_encoder,
    load_vae,
    open_transformer,
    published_text_encoder,
    published_vae,
    transformer_modules,
)
from export.checkpoints.lora_merge import ScaledAdapter
from export.checkpoints.vace import branch_modules, open_vace
from export.graphs.signature import Signature
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vace import VaceConfig, VaceTextKV, VaceTransformer
from export.graphs.vae_graphs import Autoencoder, DecoderGraph, EncoderGraph
from streaming.adapters.layers import MOST_RANK, RANKS
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import (
    TEXT_ENCODER,
    TRANSFORMER_FILES,
    VAE_FILES,
    TransformerFiles,
    read_config,
    require_file,
)
from streaming.engines.manifest import AxisRange, Form, Kind
from streaming.errors import WanstreamError
from streaming.specs import SPECS, TEMPORAL_FACTOR, LoopSpec, OnPromptChange, VaeType

Precision = Literal["fp32", "fp16", "bf16", "fp8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
DTYPES: Final[dict[Precision, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,  # what lies between the products that are quantised
}
Size = tuple[int, int]  # height, width in pixels
Profile = Mapping[str, AxisRange]


@dataclass(frozen=True, slots=True)
class Request:
    """What a user wants exported.

    sizes   pictures of height x width pixels; the first one is the default
    demo    the weights are a stand-in: the set must not take the place of one with real weights
    form    of the graphs; "cpu" is for float32 only
    padding_keys   False leaves out the keys of score zero that the reference's kernel adds, where it does
    vace    with the engines of the VACE branch
    adapters       the transformer takes LoRA files beside its weights, so that their scales can be turned
    loras          LoRA files that are merged into the weights
    """

    pipeline: str
    models: Path  # directory of checkpoints
    sizes: tuple[Size, ...]
    vae_type: VaeType = "wan"
    precision: Precision = "fp32"
    window: int | None = None  # attention window in latent frames; None: the pipeline's
    demo: bool = False
    form: Form = "portable"
    padding_keys: bool = True
    vace: bool = False
    adapters: bool = False
    loras: tuple[ScaledAdapter, ...] = ()

    @property
    def loop(self) -> LoopSpec:
        """The pipeline's loop with the window asked for. Raises WanstreamError if it cannot be exported."""
        spec = SPECS.get(self.pipeline)
        if spec is None or spec.loop is None or self.pipeline not in TRANSFORMER_FILES:
            raise WanstreamError(
                f"Pipeline '{self.pipeline}' cannot be exported. Choose: {', '.join(TRANSFORMER_FILES)}."
            )
        if self.vae_type not in spec.loop.vae_types:
            allowed = ", ".join(spec.loop.vae_types)
            raise WanstreamError(
                f"Pipeline '{self.pipeline}' has no VAE '{self.vae_type}'. Choose: {allowed}."
            )
        if self.form == "cpu" and self.precision != "fp32":
            raise WanstreamError(
                f"--form cpu is for --precision fp32, not {self.precision}: only that runs on the CPU."
            )
        loop = spec.loop
        smallest = loop.sink_size + loop.frames_per_chunk + 1
        if self.window is not None and self.window < smallest:
            raise WanstreamError(
                f"--window {self.window} is too small for '{self.pipeline}': sink and chunk alone take "
                f"{smallest - 1} latent frames. Use at least {smallest}."
            )
        for height, width in self.sizes:
            if height % 16 or width % 16 or not (64 <= height <= 2048 and 64 <= width <= 2048):
                raise WanstreamError(
                    f"{height}x{width} is no valid size: both must be multiples of 16 from 64 to 2048."
                )
        windowed = loop.with_window(self.window or loop.local_attn_size)
        return windowed if self.padding_keys else dataclasses.replace(windowed, padding_keys=0)


@dataclass(frozen=True, slots=True)
class Graph:
    """One engine to export.

    build      the loaded checkpoint -> the graph and its signature
    example    sizes of the dynamic axes that are traced, none of them 1
    profiles   sizes that the engine has to take; the parity of each end is checked
    facts      fields of the manifest, `form` among them
    """

    kind: Kind
    label: str
    build: Callable[[Any], tuple[nn.Module, Signature]]
    example: Mapping[str, int]
    profiles: tuple[Profile, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Component:
    """Checkpoint files that are loaded together, and the graphs made of them.

    weights    opens the file that holds the weights
    published  what `load` gives for the released files, but on the meta device; reads no file
    copies     how often the exported engines together hold each weight
    request    whose stream calibrates it, where it is quantised
    """

    sources: tuple[Path, ...]
    precision: Precision
    weights: Callable[[], Checkpoint]
    load: Callable[[], Any]
    published: Callable[[], Any]
    graphs: tuple[Graph, ...]
    copies: int = 1
    request: "Request | None" = None

    def weight_bytes(self) -> int:
        """Size of the weights in this precision; reads the names in the file only. Raises CheckpointError."""
        elements = sum(torch.Size(entry.shape).numel() for entry in self.weights().entries.values())
        return elements * DTYPES[self.precision].itemsize


def components(request: Request) -> tuple[Component, ...]:
    """Everything that a pipeline needs, each as small as it can be loaded.

    Raises WanstreamError for a request that cannot be met, or files that are absent.
    """
    _ = request.loop  # what no file can help with is said first
    files = TRANSFORMER_FILES[request.pipeline]
    parts = components_of(request, read_config(request.models / files.config))
    _require_autoencoder(request)
    for path in (path for part in parts for path in part.sources):
        require_file(path)
    return parts


def _require_autoencoder(request: Request) -> None:
    """Raises WanstreamError for one that a demonstration does not have: no download brings it."""
    there = [name for name, file in VAE_FILES.items() if (request.models / file).is_file()]
    if request.demo and request.vae_type not in there:
        raise WanstreamError(
            f"The demonstration in '{request.models}' has no autoencoder '{request.vae_type}'. It has: "
            f"{', '.join(there) or 'none'}. Use: --vae-type {there[0] if there else 'wan'}, or export real "
            "weights, without --demo."
        )


def components_of(request: Request, config: TransformerConfig) -> tuple[Component, ...]:
    """As `components`, for a transformer of these sizes; reads no file."""
    loop, files = request.loop, TRANSFORMER_FILES[request.pipeline]
    transformer = _transformer(request, loop, files, config)
    return (
        _text_encoder(request, config.text_len),
        *(_quantized(request, transformer) if request.precision == "fp8" else (transformer,)),
        *((_branch(request, loop, files, config, transformer),) if request.vace else ()),
        _vae(request),
    )


def unquantized(precision: Precision) -> Precision:
    """Of what lies beside a quantised transformer."""
    return "bf16" if precision == "fp8" else precision


def _quantized(request: Request, part: Component) -> tuple[Component, Component]:
    """The transformer, whose calibration needs the other checkpoints, too, and its text side, which stays."""
    transformer, text_kv = part.graphs
    others = (request.models / TEXT_ENCODER, request.models / VAE_FILES[request.vae_type])
    return (
        dataclasses.replace(part, graphs=(transformer,), sources=(*part.sources, *others), request=request),
        dataclasses.replace(part, graphs=(text_kv,), precision=unquantized(part.precision)),
    )


def _text_encoder(request: Request, text_len: int) -> Component:
    path = request.models / TEXT_ENCODER
    precision = unquantized(request.precision)
    graph = Graph(
        kind="text_encoder",
        label="text_encoder",
        build=lambda encoder: (encoder, encoder.signature()),
        example={"B": 2},
        profiles=({"B": AxisRange(min=1, opt=1, max=4)},),
        facts={"text_len": text_len, "form": request.form},
    )
    return Component(
        sources=(path,),
        precision=precision,
        weights=lambda: open_checkpoint(path),
        load=lambda: load_text_encoder(path, text_len, DTYPES[precision]),
        published=lambda: published_text_encoder(text_len),
        graphs=(graph,),
    )


def _transformer(
    request: Request, loop: LoopSpec, files: TransformerFiles, config: TransformerConfig
) -> Component:
    weights = request.models / files.weights
    adapters = () if files.adapter is None else (request.models / files.adapter[0],)
    adapters = (*adapters, *(lora.path for lora in request.loras))
    sizes = {
        "layers": config.num_layers,
        "heads": config.num_heads,
        "head_dim": config.head_dim,
        "text_len": config.text_len,
        "text_dim": config.text_dim,
        "pipeline": request.pipeline,
        "form": request.form,
    }
    if request.loras:
        sizes["loras"] = tuple(f"{lora.path.name}={lora.scale}" for lora in request.loras)
    frames = [tokens_per_frame(size) for size in request.sizes]
    one_size = len(set(frames)) == 1
    cache_tokens: int | str = loop.cache_tokens(frames[0]) if one_size else "S"
    ranks: Profile = {"R": _RANKS} if request.adapters else {}
    profiles = tuple(
        {**_profile(loop, tokens, dynamic_cache=not one_size), **ranks} for tokens in dict.fromkeys(frames)
    )
    kind = f"{request.pipeline}_adapted" if request.adapters else request.pipeline

    def checkpoint() -> Checkpoint:
        return open_transformer(request.models, files, request.loras)

    def published() -> tuple[Transformer, TextKV]:
        return transformer_modules(config, loop.cached_keys, adapted=request.adapters)

    def load() -> tuple[Transformer, TextKV]:
        modules = published()
        load_weights(
            checkpoint(),
            *modules,
            dtype=DTYPES[request.precision],
            unexpected="warn",
        )
        return modules

    transformer = Graph(
        kind="transformer",
        label=f"{kind}_transformer",
        build=lambda pair: (pair[0], pair[0].signature(cache_tokens)),
        example={axis: found.opt for axis, found in profiles[0].items()},
        profiles=profiles,
        facts={
            **sizes,
            "tokens_per_frame": frames[0] if one_size else None,
            "cache_tokens": cache_tokens if isinstance(cache_tokens, int) else None,
        },
    )
    text_kv = Graph(
        kind="text_kv",
        label=f"{kind}_text_kv",
        build=lambda pair: (pair[1], pair[1].signature()),
        example={axis: found.opt for axis, found in ranks.items()},
        profiles=(ranks,) if ranks else (),
        facts=sizes,
    )
    sources = (weights, request.models / files.config, *adapters)
    return Component(sources, request.precision, checkpoint, load, published, (transformer, text_kv))


def _branch(
    request: Request, loop: LoopSpec, files: TransformerFiles, config: TransformerConfig, plain: Component
) -> Component:
    """The transformer once more, with the VACE branch, and the branch's text side; never in float8.

    plain: the component without it, whose calls it shares
    """
    path, precision = request.models / files.vace, unquantized(request.precision)

    def load() -> tuple[VaceTransformer, VaceTextKV]:
        branch, vace = open_vace(path, config)
        modules = branch_modules(config, vace, loop.cached_keys, adapted=request.adapters)
        weights = open_transformer(request.models, files, request.loras, branch)
        # The text side of the main blocks is not here, and what else is too much is told of the plain graph.
        keys = checkpoint_shapes(*modules).keys() & weights.entries.keys()
        weights = dataclasses.replace(weights, entries={key: weights.entries[key] for key in keys})
        load_weights(weights, *modules, dtype=DTYPES[precision])
        return modules

    # A smaller network than the released one has a block beside each layer.
    stride = max(1, config.num_layers // files.published_vace_blocks)
    layers = tuple(range(0, config.num_layers, stride))

    def published() -> tuple[VaceTransformer, VaceTextKV]:
        return branch_modules(config, VaceConfig(layers), loop.cached_keys, adapted=request.adapters)

    def blocks() -> int:
        return len(open_vace(path, config)[1].layers if path.is_file() else layers)

    transformer, text_kv = plain.graphs
    facts = {"vace_blocks": blocks()}
    frames = dict.fromkeys(map(tokens_per_frame, request.sizes))
    dynamic = {"dynamic_cache": len(frames) > 1, "denoises_only": True}
    graphs = (
        dataclasses.replace(
            transformer,
            label=transformer.label.replace("_transformer", "_vace_transformer"),
            profiles=tuple(
                {**plain_sizes, **_profile(loop, tokens, **dynamic)}
                for plain_sizes, tokens in zip(transformer.profiles, frames, strict=True)
            ),
            facts={**transformer.facts, **facts},
        ),
        dataclasses.replace(
            text_kv,
            label=f"{request.pipeline}_vace_text_kv",
            example={},
            profiles=(),
            facts={**text_kv.facts, **facts},
        ),
    )
    return Component(
        sources=(*plain.sources, path),
        precision=precision,
        weights=lambda: open_transformer(request.models, files, branch=open_vace(path, config)[0]),
        load=load,
        published=published,
        graphs=graphs,
    )


_RANKS: Final = AxisRange(min=RANKS[0], opt=RANKS[1], max=MOST_RANK)  # of all adapters together


def _profile(loop: LoopSpec, tokens: int, *, dynamic_cache: bool, denoises_only: bool = False) -> Profile:
    """Sizes of one call. A recache computes up to a whole window at once, in the plain graph."""
    largest = loop.longest_chunk
    if loop.on_prompt_change is OnPromptChange.RECACHE and not denoises_only:
        largest = max(largest, loop.local_attn_size)
    smallest = min(loop.first_text_frames, loop.first_video_frames, loop.frames_per_chunk, 1)
    cached = loop.cache_tokens(tokens)
    usual = max(loop.frames_per_chunk, 2)  # 1 would become a constant of the traced example

    def times(factor: int, offset: int = 0) -> AxisRange:
        return AxisRange(
            min=smallest * factor + offset, opt=usual * factor + offset, max=largest * factor + offset
        )

    profile = {"F": times(1), "T": times(tokens), "S+T": times(tokens, cached)}
    return profile | ({"S": AxisRange(min=cached, opt=cached, max=cached)} if dynamic_cache else {})


def _vae(request: Request) -> Component:
    path = request.models / VAE_FILES[request.vae_type]
    # No bfloat16 convolutions at this opset (serving.md 9, rule 3).
    precision: Precision = "fp16" if request.precision == "fp16" else "fp32"
    return Component(
        sources=(path,),
        precision=precision,
        weights=lambda: open_checkpoint(path),
        load=lambda: load_vae(path, request.vae_type, DTYPES[precision]),
        published=lambda: published_vae(request.vae_type),
        graphs=tuple(_vae_graph(request, kind, size) for size in request.sizes for kind in _VAE_KINDS),
        copies=2 * len(request.sizes),  # a half's `first` and `next` graph both hold its weights
    )


_VAE_KINDS: Final[tuple[Kind, ...]] = (
    "vae_encoder_first",
    "vae_encoder_next",
    "vae_decoder_first",
    "vae_decoder_next",
)


# Latent frames in one call of a `next` graph: a chunk's input is encoded at once, its frames are decoded one
# by one, so that the first picture comes early. What lies between the layers grows with it.
_MOST_ENCODED, _MOST_DECODED = 3, 1


def _vae_graph(request: Request, kind: Kind, size: Size) -> Graph:
    fixed = kind.endswith("first") or request.form == "cpu"
    most = _MOST_ENCODED if "encoder" in kind else _MOST_DECODED
    graph_class = EncoderGraph if "encoder" in kind else DecoderGraph

    def build(vae: Autoencoder) -> tuple[nn.Module, Signature]:
        graph = graph_class(vae, kind.endswith("first"), form=request.form)
        return graph, graph.signature(*size)

    def frames(count: int) -> AxisRange:
        return AxisRange(min=count, opt=count, max=most * count)

    return Graph(
        kind=kind,
        label=f"{request.vae_type}_{kind}_{size[0]}x{size[1]}",
        build=build,
        example={} if fixed else {"F": 2, "T": 2 * TEMPORAL_FACTOR},
        profiles=() if fixed else ({"F": frames(1), "T": frames(TEMPORAL_FACTOR)},),
        facts={"height": size[0], "width": size[1], "form": request.form},
    )


def tokens_per_frame(size: Size) -> int:
    """Tokens of one latent frame: pictures are 16 x 16 pixels per token."""
    return (size[0] // 16) * (size[1] // 16)
