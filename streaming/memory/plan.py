"""How much memory a load takes, from the manifests of its engines, before anything is loaded. Torch-free.

What is counted follows serving.md 7 and 8.7: an engine holds its weights, one buffer for each input and
output at the largest size of its profiles, and what it needs between layers; a call copies its inputs and
outputs once more through a pool; a stream keeps its caches. Sessions take turns at everything else. Engines
in the pipeline's own process share the buffers, for one runs at a time, and nothing is copied.

Inputs, outputs, caches and weights are exact. What lies between an engine's layers is an estimate unless the
manifest of a built plan has the number, and so is what processes and CUDA contexts take.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import ITEM_BYTES, EngineManifest, read_manifest
from streaming.errors import WanstreamError
from streaming.memory.units import in_units
from streaming.network.inputs import NEW_KV, NEW_VAE_CACHE, VAE_CACHE, group_of, stem_of
from streaming.specs import LoopSpec, OnPromptChange

_POOL_RESERVE: Final = 1.25  # the pool is never without gaps (serving.md 7)
HIDDEN_TENSORS: Final = 24  # of the tokens' size, alive in a layer of a transformer: q, k, v, feed forward
_IMAGE_TENSORS: Final = 3  # of the largest layer, alive in a convolution of an autoencoder
_FLOAT_BYTES: Final = 4
_REMEDY: Final = "Load a smaller size or precision, or use a larger machine."


class DoesNotFitError(WanstreamError):
    """A load needs more memory than there is."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What engines take beside their tensors, and what the memory is called.

    apart    each engine is a Triton model: it keeps its inputs and outputs while another one runs, and what
             is under way is copied
    keeps_activations   what is between an engine's layers stays while another one runs
    on_gpu   it is a GPU's memory
    """

    memory: str
    base_bytes: int
    engine_bytes: int
    apart: bool = True
    keeps_activations: bool = True
    on_gpu: bool = False


# Two CUDA contexts.
GPU: Final = Placement("GPU memory", base_bytes=1_000_000_000, engine_bytes=0, on_gpu=True)
# Triton and the pipeline's process with PyTorch and ONNX Runtime, in which all engines are: some 320 MB.
IN_PROCESS: Final = Placement(
    "memory", base_bytes=400_000_000, engine_bytes=5_000_000, apart=False, keeps_activations=False
)
# One CUDA context; each engine's session keeps its memory.
IN_PROCESS_ON_GPU: Final = Placement(
    "GPU memory", base_bytes=700_000_000, engine_bytes=0, apart=False, on_gpu=True
)
# The same, and a process with ONNX Runtime for each engine.
MODEL_PROCESSES: Final = Placement("memory", base_bytes=600_000_000, engine_bytes=100_000_000)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one load of one picture size, in pixels, by purpose.

    weights      by engine
    buffers      inputs and outputs of all engines
    activations  between the layers; engines run one at a time, but each keeps its own
    pool         copies of inputs and outputs under way
    working      second copies of caches while a chunk is made
    overhead     processes and CUDA contexts
    session      what one stream keeps, by purpose
    """

    name: str
    height: int
    width: int
    placement: Placement
    weights: Mapping[str, int]
    buffers: int
    activations: int
    pool: int
    working: int
    overhead: int
    session: Mapping[str, int]

    @property
    def shared(self) -> int:
        """Bytes that are taken once, however many sessions there are."""
        parts = (self.buffers, self.activations, self.pool, self.working, self.overhead)
        return sum(self.weights.values()) + sum(parts)

    @property
    def per_session(self) -> int:
        return sum(self.session.values())

    def total(self, sessions: int = 1) -> int:
        return self.shared + sessions * self.per_session

    def sessions_in(self, free: int) -> int:
        """How many sessions fit in `free` bytes; 0: not even one."""
        return max(0, (free - self.shared) // max(1, self.per_session))

    def check(self, free: int, sessions: int = 1, remedy: str = _REMEDY) -> None:
        """Raises DoesNotFitError, with the numbers, unless the load fits in `free` bytes.

        remedy: a sentence
        """
        if self.total(sessions) <= free:
            return
        parts = ", ".join(f"{what} {in_units(size)}" for what, size in self.parts() if size)
        streams = "one session" if sessions == 1 else f"{sessions} sessions"
        raise DoesNotFitError(
            f"'{self.name}' at {self.height}x{self.width} (height x width) needs about "
            f"{in_units(self.total(sessions))} of {self.placement.memory} for {streams}, "
            f"{in_units(free)} are free: {parts}. {remedy}"
        )

    def parts(self) -> list[tuple[str, int]]:
        """Bytes by purpose, for one session, largest group first as far as the order is fixed."""
        return [
            ("weights", sum(self.weights.values())),
            ("engine inputs and outputs", self.buffers),
            ("activations", self.activations),
            ("copies under way", self.pool),
            ("second copies of caches", self.working),
            ("processes", self.overhead),
            *((f"session: {what}", size) for what, size in self.session.items()),
        ]

    def lines(self) -> list[str]:
        """The plan as a text for people, one line per part."""
        width = max(len(what) for what, _ in self.parts())
        total = f"{in_units(self.total())} of {self.placement.memory}"
        return [
            f"{self.name} at {self.height}x{self.width}: {total}, {in_units(self.per_session)} a session",
            *(f"  {what:<{width}}  {in_units(size):>8}" for what, size in self.parts()),
        ]

    def as_json(self) -> dict[str, Any]:
        """The numbers, in bytes, for a JSON document."""
        return {
            "name": self.name,
            "height": self.height,
            "width": self.width,
            "memory": self.placement.memory,
            "total_bytes": self.total(),
            "shared_bytes": self.shared,
            "session_bytes": self.per_session,
            "weights": dict(self.weights),
            "parts": dict(self.parts()),
        }


def memory_plan(
    engines: EngineSet,
    manifests: Mapping[str, EngineManifest],
    loop: LoopSpec,
    size: tuple[int, int] | None = None,
    placement: Placement = GPU,
) -> MemoryPlan:
    """What loading `engines` for one size of picture takes.

    loop        the pipeline's own
    manifests   of the engines that are in memory at the same time, by name: without the text encoder's, it is
                taken as loaded only when it is needed
    size        height and width in pixels; None: the set's default
    """
    loop = engines.built_for(loop)
    height, width = size or (engines.vae[0].height, engines.vae[0].width)
    here = set(engines.engines((height, width)))
    loaded = {name: manifest for name, manifest in manifests.items() if name in here}
    caches = _session_caches(engines, loaded, loop, height, width)
    largest_call = _largest(map(_largest_call, loaded.values()))
    together, between = (sum if kept else _largest for kept in (placement.apart, placement.keeps_activations))
    again = sum(caches[name] for name in ("VAE caches", "cross attention"))  # old and new ones in one call
    again += caches["averaged sink"]  # a chunk makes a new one; the old one is still needed on failure
    if loop.on_prompt_change is OnPromptChange.RECACHE:
        again += caches["KV cache"]  # is computed anew beside the old one, which is still needed on failure
    return MemoryPlan(
        name=engines.name,
        height=height,
        width=width,
        placement=placement,
        weights={name: manifest.bytes for name, manifest in loaded.items()},
        buffers=together(map(_largest_call, loaded.values())),
        activations=between(map(activation_bytes, loaded.values())),
        pool=int(_POOL_RESERVE * largest_call) if placement.apart else 0,
        working=again,
        overhead=placement.base_bytes + len(loaded) * placement.engine_bytes,
        session=caches,
    )


def read_manifests(models: Path, names: tuple[str, ...]) -> dict[str, EngineManifest]:
    """Manifests of these engines in a directory of Triton models. Raises EngineError."""
    return {name: read_manifest(models / name / "1") for name in names}


def activation_bytes(manifest: EngineManifest) -> int:
    """What an engine needs between its layers: measured if its plan was built, else an estimate.

    The estimate takes attention as fused; where it is not, the logits of a layer come on top.
    """
    if manifest.tensorrt is not None and manifest.tensorrt.activation_bytes is not None:
        return manifest.tensorrt.activation_bytes
    sizes = manifest.largest_sizes()
    if manifest.kind.startswith("vae"):
        frames = sizes.get("T", 1)
        named = (*manifest.inputs, *manifest.outputs)
        kept = [t for t in named if stem_of(t.name) in (VAE_CACHE, NEW_VAE_CACHE)]
        # [B, C, frames, H, W], or [B, 1, C, H, W] of the tiny ones
        maps = [t.bytes(sizes) // min(map(int, t.shape[1:3])) for t in kept]
        return _IMAGE_TENSORS * frames * max(maps, default=0)
    if manifest.kind == "transformer":
        kv = next(t for t in manifest.outputs if stem_of(t.name) == NEW_KV)
        return HIDDEN_TENSORS * kv.bytes(sizes) // 2
    return HIDDEN_TENSORS * max(t.bytes(sizes) for t in manifest.outputs)


def _session_caches(
    engines: EngineSet, manifests: Mapping[str, EngineManifest], loop: LoopSpec, height: int, width: int
) -> dict[str, int]:
    """What the inputs of the engines say about the caches of one stream."""
    vae = engines.vae_for(height, width)
    tokens = (height // engines.model.pixels_per_token) * (width // engines.model.pixels_per_token)

    def inputs(engine: str, group: str, sizes: Mapping[str, int]) -> int:
        manifest = manifests.get(engine)
        found = () if manifest is None else manifest.inputs
        return sum(tensor.bytes(sizes) for tensor in found if group_of(tensor.name) == group)

    slots, facts = loop.cache_tokens(tokens, engines.cache_frames), engines.model
    kv_cache = inputs(engines.transformer, "cache", {"S": slots})
    return session_parts(
        loop,
        kv_cache=kv_cache,
        frame=kv_cache * tokens // slots,
        item=_cache_item(manifests.get(engines.transformer)),
        cross_attention=inputs(engines.transformer, "cross", {}),
        vae_caches=inputs(vae.decoder_next, "cache", {}) + inputs(vae.encoder_next, "cache", {}),
        latent=facts.channels * (height // facts.spatial_factor) * (width // facts.spatial_factor),
        pixels=height * width,
    )


def session_parts(
    loop: LoopSpec,
    *,
    kv_cache: int,
    frame: int,
    item: int,
    cross_attention: int,
    vae_caches: int,
    latent: int,
    pixels: int,
) -> dict[str, int]:
    """What one stream keeps, by purpose, in bytes.

    kv_cache, frame   of the self-attention cache, and of one latent frame in it
    item              bytes of a number in it
    latent, pixels    numbers of a latent frame, and pixels of a picture: clean latents of a window, and the
                      pictures that a re-encoded context needs, are float32
    """
    widened = _FLOAT_BYTES / item if loop.sink_ema_float32 else 1
    kept = loop.local_attn_size * latent + loop.context_pictures * 3 * pixels
    return {
        "KV cache": kv_cache,
        "averaged sink": int(frame * loop.averaged_frames * widened),
        "memory bank": frame * loop.remembered_frames,
        "cross attention": cross_attention,
        "VAE caches": vae_caches,
        "latents and pictures": _FLOAT_BYTES * kept,
    }


def _cache_item(transformer: EngineManifest | None) -> int:
    """Bytes of one number in the self-attention cache; without the engine, which is not loaded then, 4."""
    tensors = () if transformer is None else transformer.inputs
    return next((ITEM_BYTES[t.dtype] for t in tensors if group_of(t.name) == "cache"), _FLOAT_BYTES)


def _largest(sizes: Iterable[int]) -> int:
    return max(sizes, default=0)


def _largest_call(manifest: EngineManifest) -> int:
    """Bytes of all inputs and outputs at the largest size of any profile."""
    sizes = manifest.largest_sizes()
    return sum(tensor.bytes(sizes) for tensor in (*manifest.inputs, *manifest.outputs))
