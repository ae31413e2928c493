"""Replays of the autoencoders and of pixel conversion: wan.md 5."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from export.checkpoints.checkpoints import load_weights
from export.graphs.signature import Signature, Values
from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import (
    Autoencoder,
    AutoencoderGraph,
    DecoderGraph,
    EncoderGraph,
    Prepare,
    decode,
    encode,
)
from streaming.network.pictures import to_pictures
from streaming.network.video import resample_indices, to_model
from streaming.specs import TEMPORAL_FACTOR
from tests.golden.case import GoldenCase
from tests.golden.place import Call, Place, in_torch


def wan_vae(case: GoldenCase) -> WanVae:
    """The full or pruned VAE of a case, with its weights."""
    with torch.device("meta"):
        vae = WanVae(VaeConfig.from_json(case.config))
    load_weights(case.checkpoint(), vae)
    return vae


def tiny_vae(case: GoldenCase, normalized: bool) -> TinyVae:
    """The tiny autoencoder of a case as tae, or as lighttae."""
    with torch.device("meta"):
        vae = TinyVae(replace(TinyVaeConfig.from_json(case.config), normalized=normalized))
    load_weights(case.checkpoint(), vae)
    return vae


class CpuForm:
    """Graphs in the form for the CPU, in another place. One case after the other."""

    vae: Autoencoder

    def __init__(self, place: Place = in_torch) -> None:
        self._place = place

    def __call__(self, module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> Call:
        """A graph takes one latent frame at a time there, and caches with the time axis first."""
        if isinstance(module, DecoderGraph):
            graph: AutoencoderGraph = DecoderGraph(self.vae, module.first, module.clamp, form="cpu")
            frames, results = 1, 1
        else:
            assert isinstance(module, EncoderGraph)
            graph, results = EncoderGraph(self.vae, module.first, form="cpu"), 2
            frames = self.vae.groups.first if module.first else self.vae.groups.later
        pictures = (signature.outputs if isinstance(module, DecoderGraph) else signature.inputs)[0]
        height, width = map(int, pictures.shape[-2:])
        run = self._place(graph, graph.signature(height, width), {})

        def call(x: Tensor, *caches: Tensor) -> Sequence[Tensor]:
            kept, parts = [cache[0].transpose(0, 1) for cache in caches], []
            for part in x.split(frames, dim=2):
                outputs = run(part, *kept)
                parts.append(outputs[:results])
                kept = outputs[results:]
            joined = [torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True)]
            return (*joined, *(cache.transpose(0, 1)[None] for cache in kept))

        return call


def at_size(place: Place, vae: Autoencoder) -> Prepare:
    """Prepares graphs for the size of the pictures, or latents, that come."""
    if isinstance(place, CpuForm):
        place.vae = vae

    def prepare(graph: AutoencoderGraph) -> Call:
        def call(x: Tensor, caches: Values = ()) -> Sequence[Tensor]:
            scale = vae.spatial_factor if isinstance(graph, DecoderGraph) else 1
            signature = graph.signature(x.shape[3] * scale, x.shape[4] * scale)
            return place(graph, signature, {"F": 2, "T": 2 * TEMPORAL_FACTOR})(x, *caches)

        return call

    return prepare


def check(case: GoldenCase, results: Mapping[str, Tensor], prefix: str = "") -> None:
    """Compare everything that the case expects below `prefix`."""
    for name in case.expected():
        if name.startswith(prefix):
            case.assert_close(name, results[name])


def numbered(prefix: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}_{i}": tensor for i, tensor in enumerate(tensors)}


def oneshot(case: GoldenCase, place: Place = in_torch) -> None:
    """A clip encoded and a latent clip decoded, each in one call."""
    vae = wan_vae(case)
    prepare = at_size(place, vae)
    results: dict[str, Tensor] = {}

    if "in.pixels" in case.tensors:
        results["out.latents"], results["out.mu"], _ = encode(vae, case.tensors["in.pixels"], prepare=prepare)
    if "in.latents" in case.tensors:
        results["out.pixels"], _ = decode(vae, case.tensors["in.latents"], prepare=prepare)
        results["out.pixels_unclamped"], _ = decode(
            vae, case.tensors["in.latents"], clamp=False, prepare=prepare
        )

    check(case, results)


def decode_first(case: GoldenCase, place: Place = in_torch) -> None:
    """The two decoder graphs: `first` on one latent frame, `next` on the caches that it gives."""
    vae = wan_vae(case)
    prepare = at_size(place, vae)

    pixels, *caches = prepare(DecoderGraph(vae, first=True, clamp=False))(case.tensors["in.latents"])
    later, *_ = prepare(DecoderGraph(vae, first=False, clamp=False))(
        case.tensors["in.next_latents"], tuple(caches)
    )

    case.assert_equal("number of caches", len(caches), case.config["cache_count"])
    results = {"out.pixels_unclamped": pixels, "out.next_pixels_unclamped": later}
    check(case, results | numbered("out.dec_cache", caches))


def decode_stream(case: GoldenCase, place: Place = in_torch) -> None:
    vae = wan_vae(case)
    prepare = at_size(place, vae)
    caches: Values | None = None

    for k, step in enumerate(case.steps):
        latents = case.tensors[f"step{k}.in.latents"]
        before = None if step["first"] else caches
        pixels, caches = decode(vae, latents, before, clamp=False, prepare=prepare)
        clamped, _ = decode(vae, latents, before, prepare=prepare)

        results = {f"step{k}.out.pixels_unclamped": pixels, f"step{k}.out.pixels": clamped}
        check(case, results | numbered(f"step{k}.state.dec_cache", caches), f"step{k}.")


def encode_stream(case: GoldenCase, place: Place = in_torch) -> None:
    vae = wan_vae(case)
    prepare = at_size(place, vae)
    caches: Values | None = None

    for k, step in enumerate(case.steps):
        frames = case.tensors[f"step{k}.in.pixels"]
        z, mu, caches = encode(vae, frames, None if step["first"] else caches, prepare)

        results = {f"step{k}.out.latents": z, f"step{k}.out.mu": mu}
        check(case, results | numbered(f"step{k}.state.enc_cache", caches), f"step{k}.")


class TinyStream:
    """Encoder and decoder state of one tiny autoencoder. Tensors as in the cases, [B, T, C, h, w]."""

    def __init__(self, vae: Autoencoder, place: Place) -> None:
        self.vae, self.place = vae, place
        self.prepare = at_size(place, vae)
        self.caches: dict[str, Values | None] = {"encode": None, "decode": None}

    def encode(self, pixels: Tensor) -> Tensor:
        z, _, self.caches["encode"] = encode(self.vae, pixels, self.caches["encode"], self.prepare)
        return z.transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        pixels, self.caches["decode"] = decode(
            self.vae, latents.transpose(1, 2), self.caches["decode"], prepare=self.prepare
        )
        return pixels.transpose(1, 2)

    def memories(self, op: str) -> list[Tensor]:
        return [memory.squeeze(1) for memory in self.caches[op] or ()]


def tae_stream(case: GoldenCase, place: Place = in_torch) -> None:
    """Calls of tae, one state for each direction; the normalised form beside it is lighttae's."""
    tae, lighttae = (TinyStream(tiny_vae(case, normalized), place) for normalized in (False, True))

    for k, step in enumerate(case.steps):
        if step["first"]:
            tae.caches[step["op"]] = lighttae.caches[step["op"]] = None
        results: dict[str, Tensor] = {}
        if step["op"] == "encode":
            pixels = case.tensors[f"step{k}.in.pixels"]
            results[f"step{k}.out.latents"] = tae.encode(pixels)
            results[f"step{k}.out.latents_normalized"] = lighttae.encode(pixels)
        else:
            results[f"step{k}.out.pixels"] = tae.decode(case.tensors[f"step{k}.in.latents"])
        memories = numbered(f"step{k}.state.{step['op'][:3]}_mem", tae.memories(step["op"]))
        check(case, results | memories, f"step{k}.")

    if "in.lighttae_latents" in case.tensors:
        fresh = TinyStream(lighttae.vae, place)
        check(case, {"out.lighttae_pixels": fresh.decode(case.tensors["in.lighttae_latents"])}, "out.")


def pixels(case: GoldenCase) -> None:
    """Pictures of mixed sizes to VAE input, VAE output to pictures, and which frames are taken."""
    height, width = case.config["height"], case.config["width"]
    names = sorted((n for n in case.tensors if n.startswith("in.frame")), key=lambda n: int(n[8:]))
    pictures = [case.tensors[name].numpy() for name in names]
    ramp = [np.tile(np.arange(256, dtype=np.uint8)[None, :, None, None], (1, 1, 1, 3))]
    results: dict[str, Tensor] = {}

    for name, dtype in (("float32", np.float32), ("bfloat16", ml_dtypes.bfloat16)):
        results[f"out.{name}"] = torch.from_numpy(to_model(pictures, height, width, dtype).astype(np.float32))
        grey = to_model(ramp, 256, 1, dtype).astype(np.float32)[0, 0, 0, :, 0]
        results[f"out.ramp_{name}"] = torch.from_numpy(grey)
    video = case.tensors["in.video"].transpose(1, 2)
    results["out.uint8"] = torch.from_numpy(to_pictures(video))

    check(case, results)
    for entry in case.values["resample"]:
        have, want = entry["have"], entry["want"]
        case.assert_equal(f"frames taken, {want} of {have}", resample_indices(have, want), entry["indices"])


REPLAYS: dict[str, Callable[[GoldenCase], None]] = {
    "wan.vae_oneshot": oneshot,
    "wan.vae_decode_first": decode_first,
    "wan.vae_decode_stream": decode_stream,
    "wan.vae_encode_stream": encode_stream,
    "wan.tae_stream": tae_stream,
    "wan.pixels": pixels,
}
