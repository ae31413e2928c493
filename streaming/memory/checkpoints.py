"""How much memory backend `pytorch` takes, by the sizes of a checkpoint that need not be there. Torch-free.

Weights, caches and what a call gives back are exact. What lies between layers is an estimate; that of the
autoencoders is from the peaks of a run on one H200 (docs/gpu.md 2): bfloat16, with cuDNN's workspace in it.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Final, get_args

from streaming.adapters.layers import Network, adapted_axes
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import TEXT_ENCODER, TRANSFORMER_FILES, VAE_FILES, read_config
from streaming.engines.load_plan import TorchPlan, TorchPrecision
from streaming.memory.plan import HIDDEN_TENSORS, MemoryPlan, Placement, session_parts
from streaming.specs import LoopSpec, OnPromptChange, VaeType

ITEM_BYTES: Final[dict[TorchPrecision, int]] = {"fp32": 4, "bf16": 2}
# CUDA's context and the workspaces of its libraries.
ON_GPU: Final = Placement("GPU memory", base_bytes=1_000_000_000, engine_bytes=0, apart=False, on_gpu=True)
# Triton and the pipeline's process with PyTorch: some 400 MB.
ON_CPU: Final = Placement("memory", base_bytes=500_000_000, engine_bytes=0, apart=False)
UMT5_XXL_PARAMETERS: Final = 5_680_910_336
_PIXELS_PER_LATENT: Final = 8  # in height and in width
_TRIMMED: Final = 0.25  # of the published file: a smaller one holds smaller networks, not smaller numbers


@dataclass(frozen=True, slots=True)
class VaeSizes:
    """An autoencoder as published.

    parameters      of both halves
    cache           numbers that a stream keeps, of both halves, per pixel of a picture
    working_bytes   between the layers, per pixel of a picture, in bfloat16
    """

    parameters: int
    cache: float
    working_bytes: int


VAE_SIZES: Final[dict[VaeType, VaeSizes]] = {
    "wan": VaeSizes(126_892_531, 1404.0 + 2364.5, 33_000),
    "lightvae": VaeSizes(8_035_003, 355.5 + 591.5, 9_000),
    "tae": VaeSizes(11_315_539, 63.0 + 84.0, 2_500),
    "lighttae": VaeSizes(11_315_539, 63.0 + 84.0, 2_500),
}


@dataclass(frozen=True, slots=True)
class CheckpointSizes:
    """What the memory of a checkpoint depends on.

    text_parameters   of the text encoder
    vae_width         of the autoencoder's channels, as a part of the published ones
    adapter_rank      of LoRA files beside the weights, as much as there may be
    vace_parameters   of the VACE branch; 0: it is not loaded
    """

    transformer: TransformerConfig
    text_parameters: int = UMT5_XXL_PARAMETERS
    vae_width: float = 1.0
    adapter_rank: int = 0
    vace_parameters: int = 0

    @staticmethod
    def of(models: Path, pipeline: str, vae_type: VaeType, *, vace: bool = False) -> "CheckpointSizes":
        """Of the files in the directory of models; of the published ones where there are none.

        vace: with the branch, whose file is there. Raises WanstreamError for a damaged config.json.
        """
        files = TRANSFORMER_FILES[pipeline]
        config = models / files.config
        encoder, autoencoder = models / TEXT_ENCODER, models / VAE_FILES[vae_type]
        return CheckpointSizes(
            read_config(config) if config.is_file() else files.published,
            _safetensors_parameters(encoder) if encoder.is_file() else UMT5_XXL_PARAMETERS,
            _vae_width(autoencoder.stat().st_size, vae_type) if autoencoder.is_file() else 1.0,
            vace_parameters=_safetensors_parameters(models / files.vace, "vace_") if vace else 0,
        )


def checkpoint_memory(
    name: str,
    sizes: CheckpointSizes,
    loop: LoopSpec,
    size: tuple[int, int],
    plan: TorchPlan,
    *,
    text_encoder: bool,
) -> MemoryPlan:
    """What the device of a load takes. size: height and width in pixels.

    text_encoder: it is in the same memory
    """
    config, (height, width) = sizes.transformer, size
    item, vae_item = ITEM_BYTES[plan.precision], ITEM_BYTES[plan.vae_precision]
    patch = _PIXELS_PER_LATENT * config.patch_size[1]
    tokens, pixels = (height // patch) * (width // patch), height * width
    vae = VAE_SIZES[plan.vae_type]

    def kv(count: int) -> int:
        """Keys and values of so many tokens in every layer."""
        return 2 * count * config.dim * config.num_layers * item

    session = session_parts(
        loop,
        kv_cache=kv(loop.cache_tokens(tokens)),
        frame=kv(tokens),
        item=item,
        cross_attention=kv(config.text_len),
        vae_caches=int(vae.cache * sizes.vae_width * pixels * vae_item),
        latent=config.in_dim * (height // _PIXELS_PER_LATENT) * (width // _PIXELS_PER_LATENT),
        pixels=pixels,
    )
    recaches = loop.on_prompt_change is OnPromptChange.RECACHE

    def transformer(new_tokens: int) -> int:
        """A call's hidden layers, the keys and values of one layer put together, and all new ones."""
        keys = loop.cache_tokens(tokens) + new_tokens
        return (HIDDEN_TENSORS * new_tokens + 3 * keys) * config.dim * item + kv(new_tokens)

    chunk = transformer(tokens * loop.longest_chunk)
    others = transformer(tokens * loop.local_attn_size) if recaches else chunk
    working = int(vae.working_bytes * sizes.vae_width * pixels * vae_item // ITEM_BYTES["bf16"])
    again = session["VAE caches"] + session["cross attention"] + session["averaged sink"]
    again += session["KV cache"] if recaches else 0
    graph = plan.on_gpu and plan.switches.cuda_graph
    return MemoryPlan(
        name=name,
        height=height,
        width=width,
        placement=ON_GPU if plan.on_gpu else ON_CPU,
        weights=checkpoint_weights(sizes, plan, text_encoder=text_encoder),
        buffers=_buffers(sizes, session, item, graph=graph),
        activations=max(others, working) + (chunk if graph else 0),  # a recorded call keeps what it needs
        pool=0,
        working=again,
        overhead=(ON_GPU if plan.on_gpu else ON_CPU).base_bytes,
        session=session,
    )


def _buffers(sizes: CheckpointSizes, session: Mapping[str, int], item: int, *, graph: bool) -> int:
    """The factors of LoRA files, and what recorded calls keep copies of."""
    axes = [adapted_axes(sizes.transformer, network) for network in get_args(Network)]
    factors = sum(sum(a.values()) for a in axes) * sizes.adapter_rank * item
    copies = session["KV cache"] + session["cross attention"] + factors if graph else 0
    return factors + copies


def text_memory(name: str, sizes: CheckpointSizes, size: tuple[int, int], plan: TorchPlan) -> MemoryPlan:
    """What a text encoder on the CPU takes beside a model on a GPU."""
    weights = checkpoint_weights(sizes, plan, text_encoder=True)["text_encoder"]
    return MemoryPlan(
        f"The text encoder of {name}",
        *size,
        ON_CPU,
        {"text_encoder": weights},
        0,
        0,
        0,
        0,
        ON_CPU.base_bytes,
        {},
    )


def checkpoint_weights(sizes: CheckpointSizes, plan: TorchPlan, *, text_encoder: bool) -> dict[str, int]:
    """Bytes of the weights by network."""
    config, item = sizes.transformer, ITEM_BYTES[plan.precision]
    norms = 2 * config.dim * config.num_layers  # those that stay float32
    transformer, text_kv = transformer_parameters(config)
    vae = VAE_SIZES[plan.vae_type].parameters * sizes.vae_width**2
    weights = {
        "transformer": transformer * item + norms * (ITEM_BYTES["fp32"] - item),
        "text_kv": text_kv * item,
        "vae": int(vae) * ITEM_BYTES[plan.vae_precision],
    }
    if sizes.vace_parameters:
        weights["vace"] = sizes.vace_parameters * item
    if text_encoder:
        weights["text_encoder"] = sizes.text_parameters * ITEM_BYTES[plan.text_precision]
    return weights


def transformer_parameters(config: TransformerConfig) -> tuple[int, int]:
    """How many numbers the transformer holds, and its text side."""
    d, f, patch = config.dim, config.ffn_dim, prod(config.patch_size)
    square = d * d + d
    block = 6 * square + 3 * d + 2 * d + 6 * d + (d * f + f) + (f * d + d)
    embeddings = (config.in_dim * patch * d + d) + (config.freq_dim * d + d) + square + (6 * d * d + 6 * d)
    head = 2 * d + (d + 1) * config.out_dim * patch
    text = (config.text_dim * d + d) + square + config.num_layers * (2 * square + d)
    return config.num_layers * block + embeddings + head, text


def _safetensors_parameters(path: Path, prefix: str = "") -> int:
    """How many numbers a file holds, by its header, in tensors whose names begin so.

    Of an unreadable one, as many as it has bytes.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
        return sum(prod(entry["shape"]) for key, entry in header.items() if _counts(key, prefix))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return path.stat().st_size


def _counts(key: str, prefix: str) -> bool:
    return key != "__metadata__" and key.startswith(prefix)


def _vae_width(file_bytes: int, vae_type: VaeType) -> float:
    """By the size of the file, for its names cannot be read without PyTorch; weights grow with the square."""
    part = file_bytes / (VAE_SIZES[vae_type].parameters * ITEM_BYTES["fp32"])
    return sqrt(part) if part < _TRIMMED else 1.0
