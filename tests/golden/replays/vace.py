"""Replays of VACE: pixels, masks and contexts; hints of the branch; a stream with and without context."""

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.checkpoints.checkpoints import load_weights
from export.graphs.signature import Signature, Values
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vace import VaceConfig, VaceTextKV, VaceTransformer
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import EncoderGraph
from export.pytorch.pipeline import stream_sizes
from streaming.cache.attention_bias import visible
from streaming.checkpoints.config import TransformerConfig
from streaming.conditioning.conditions import Conditions, VaceContext
from streaming.engines.engine import TorchEngine, VaeEngines
from streaming.network.inputs import TensorSpec
from streaming.network.transformer import TransformerCall
from streaming.network.video import resample_indices
from streaming.vace.context import Clips, ContextEncoder, EncoderCaches
from streaming.vace.pixels import control_clip, image_clip, mask_channels, mask_clip
from tests.golden.case import GoldenCase
from tests.golden.place import Place, in_torch
from tests.golden.replays.transformer import ReferenceCache, assert_states
from tests.transformer_inputs import empty_caches, pad_prompt

_hints: list[Tensor] = []  # of the pass in the making, for `WithHints`


class WithHints(VaceTransformer):
    """The branch's graph with its hints, before they are scaled, as further outputs."""

    def unscaled_hints(self, x: Tensor, e0: Tensor, vace: Values) -> list[Tensor]:
        _hints[:] = super().unscaled_hints(x, e0, vace)
        return list(_hints)

    def forward(
        self,
        tokens: Values,
        rope: Values,
        cross: Values,
        cache: Values,
        rope_k: Values | None = None,
        vace: Values | None = None,
    ) -> tuple[Tensor, ...]:
        results = super().forward(tokens, rope, cross, cache, rope_k, vace)
        return results if vace is None else (*results, *_hints)

    def signature(self, cache_tokens: int | str, batch: int = 1, *, branch: bool = True) -> Signature:
        plain = super().signature(cache_tokens, batch, branch=branch)
        names = [f"hint_{n}" for n in range(len(self.vace.layers))] if branch else []
        hints = tuple(TensorSpec(name, (batch, "T", self.config.dim)) for name in names)
        return replace(plain, outputs=(*plain.outputs, *hints))


class VaceGraphs:
    """The graphs of a case in a place: with the branch and without, and the text side of both."""

    def __init__(self, case: GoldenCase, place: Place) -> None:
        sizes = case.config
        self.config = config = TransformerConfig.from_json(sizes)
        vace = VaceConfig(tuple(sizes["vace_layers"]), sizes["vace_in_dim"])
        with torch.device("meta"):
            plain, branch = Transformer(config), WithHints(config, vace)
            text, vace_text = TextKV(config), VaceTextKV(config, vace)
        load_weights(case.checkpoint(), plain, branch, text, vace_text)
        self.plain, self.branch = plain, branch
        self.place = place
        embedding = pad_prompt(case.tensors["in.context"], config.text_len)
        self.cross_kv, self.vace_cross_kv = (
            tuple(place(side, side.signature(), {})(embedding)) for side in (text, vace_text)
        )

    def run(
        self, latents: Tensor, timestep: Tensor, context: VaceContext | None, **rest: Any
    ) -> tuple[Tensor, list[Tensor], Sequence[Tensor]]:
        """Flow, keys and values, and hints."""
        sizes = stream_sizes(self.config)
        conditions = Conditions(self.cross_kv, vace=context)
        call = TransformerCall(sizes, latents, timestep, conditions=conditions, **rest)
        S, tokens = call.kv[0].shape[2], call.tokens.shape[1] // latents.shape[1]
        module = self.plain if context is None else self.branch
        signature = module.signature(S)
        names = [spec.name for spec in signature.inputs]
        traced = {"F": 2, "T": 2 * tokens, "S+T": S + 2 * tokens}
        flow, *rest = self.place(module, signature, traced)(*call.inputs(names).values())
        layers = self.config.num_layers
        return call.flow(flow), rest[:layers], rest[layers:]

    def context(self, latents: Tensor, scale: float, *, padding: bool) -> VaceContext:
        """latents [96, F', h, w]"""
        return VaceContext(latents.transpose(0, 1)[None], scale, self.vace_cross_kv, padding)


def replay_bidirectional(case: GoldenCase, place: Place = in_torch) -> None:
    """All frames at once, at several scales; the cache is one hidden slot."""
    graphs = VaceGraphs(case, place)
    latents = case.tensors["in.latents"].transpose(0, 1)[None]
    frames, sizes = latents.shape[1], graphs.config
    tokens = frames * (latents.shape[3] // sizes.patch_size[1]) * (latents.shape[4] // sizes.patch_size[2])
    timestep = case.tensors["in.timestep"].reshape(1, 1).expand(1, frames)
    rest = {
        "positions": range(frames),
        "kv": empty_caches(sizes, 1, latents),
        "key_bias": visible((), 1, tokens),
    }
    for name in case.expected():
        if match := re.fullmatch(r"out\.flow_scale_(.+)", name):
            scale = float(match[1])
            context = graphs.context(case.tensors["in.vace_context"], scale, padding=False)
            flow, _, hints = graphs.run(latents, timestep, context, **rest)
            case.assert_close(name, flow[0].transpose(0, 1))
            for n, hint in enumerate(hints):
                case.assert_close(f"out.hint_{n}", hint)
            if scale == 0:
                plain, _, _ = graphs.run(latents, timestep, None, **rest)
                torch.testing.assert_close(plain, flow, rtol=1e-5, atol=1e-5)


def replay_causal(case: GoldenCase, place: Place = in_torch) -> None:
    """Chunks of a stream: calls with a context, and the plain graph's clean calls that fill the cache."""
    graphs, sizes = VaceGraphs(case, place), case.config
    padding = "un-padded" not in sizes["vace_self_attention"]
    cache = ReferenceCache(
        empty_caches(graphs.config, sizes["kv_cache_tokens"], graphs.cross_kv[0]),
        sink=sizes["sink_size"] * sizes["frame_seq_length"],
        window=sizes["max_attention_size"],
        evicts=sizes["local_attn_size"] != -1,
    )
    for k, step in enumerate(case.steps):
        latents, timestep = case.tensors[f"step{k}.in.latents"], case.tensors[f"step{k}.in.timestep"]
        first = step["current_start"] // sizes["frame_seq_length"]
        cache.start_call(step["current_start"], latents.shape[1] * sizes["frame_seq_length"])
        name = step["vace_context"]
        context = name and graphs.context(case.tensors[name], step["vace_context_scale"], padding=padding)
        flow, new_kv, hints = graphs.run(
            latents,
            timestep,
            context,
            positions=range(first, first + latents.shape[1]),
            kv=cache.layers,
            key_bias=cache.key_bias(),
        )
        cache.write(new_kv)
        case.assert_close(f"step{k}.out.flow", flow)
        for n, hint in enumerate(hints):
            if f"step{k}.out.hint_{n}" in case.tensors:
                case.assert_close(f"step{k}.out.hint_{n}", hint)
        assert_states(case, k, graphs.cross_kv, cache)


def ref_images(case: GoldenCase) -> None:
    height, width = case.config["target_height"], case.config["target_width"]
    for name in case.expected():
        match = re.fullmatch(r"out\.(cover|letterbox)_(\d+)", name)
        assert match is not None, f"{case}: {name} is not known"
        image = case.tensors[f"in.image_{match[2]}"].numpy()
        clip = image_clip(image, height, width, match[1])  # type: ignore[arg-type]
        case.assert_close(name, torch.from_numpy(clip[0]))


def mask_packing(case: GoldenCase) -> None:
    for name, values in case.values.items():
        packed = torch.from_numpy(mask_channels(case.tensors[f"in.mask_{name}"].numpy()[None])[0])
        zeros = packed.new_zeros((64, values["ref_frames"], *packed.shape[2:]))
        case.assert_close(f"out.packed_{name}", torch.cat([zeros, packed], dim=1))


def chunk_preprocess(case: GoldenCase) -> None:
    height, width = case.config["height"], case.config["width"]
    for name, indices in case.values["resample_indices"].items():
        have, want = map(int, name.split("->"))
        case.assert_equal(f"frames taken, {name}", resample_indices(have, want), indices)
    inputs = {
        kind: [
            tensor[0].numpy()
            for name, tensor in sorted(case.tensors.items())
            if name.startswith(f"in.{kind}_")
        ]
        for kind in ("frame", "mask")
    }
    for name in case.expected():
        match = re.fullmatch(r"out\.(frame|mask)s_(\d+)", name)
        assert match is not None, f"{case}: {name} is not known"
        make = control_clip if match[1] == "frame" else mask_clip
        case.assert_close(name, torch.from_numpy(make(inputs[match[1]], height, width, int(match[2]))))


class Contexts:
    """Contexts of one stream of a case, chunk after chunk."""

    def __init__(self, case: GoldenCase, vae: VaeEngines, *, shared: bool = True) -> None:
        self._case, self._vae = case, vae
        self._caches = EncoderCaches(shared)
        self._first = True
        self.size = case.config["height"], case.config["width"]

    def image(self, n: int) -> np.ndarray[Any, Any]:
        return image_clip(self._case.tensors[f"in.image_{n}"].numpy(), *self.size)

    def frames(self, chunk: int, *, masks: bool = False) -> dict[str, np.ndarray[Any, Any]]:
        kinds = ("frames", "masks") if masks else ("frames",)
        return {kind: self._case.tensors[f"in.{kind}_chunk{chunk}"].numpy() for kind in kinds}

    def make(self, **clips: Any) -> Tensor:
        """The next chunk's: [96, F', h, w]."""
        encoder = ContextEncoder(
            self._vae,
            lambda tensor: tensor,
            lambda name: contextlib.nullcontext(),
            self._caches,
            first_chunk=self._first,
        )
        context = encoder.context(Clips(**clips), self.size, 4 * self._case.config["num_frame_per_block"])
        assert context is not None
        self._caches, self._first = encoder.caches, False
        return context[0].transpose(0, 1)


def _image(contexts: Contexts, mode: str) -> dict[str, Any]:
    return {
        "firstframe": {"first": contexts.image(0)},
        "lastframe": {"last": contexts.image(1)},
        "firstlastframe": {"first": contexts.image(0), "last": contexts.image(1)},
    }[mode]


def context_wanvae(case: GoldenCase, place: Place = in_torch) -> None:
    """Every scenario of `values.scenarios` from the start of a stream."""
    vae = encoder_engines(case, place)

    def stream(**options: Any) -> Contexts:
        return Contexts(case, vae, **options)

    for name in case.expected():
        if match := re.fullmatch(r"out\.r2v_(\d+)", name):
            fresh = stream()
            images = [fresh.image(n) for n in range(int(match[1]))]
            case.assert_close(name, fresh.make(references=images))
    for mode in ("control", "inpaint", "control_ref", "control_separate"):
        contexts = stream(shared=mode != "control_separate")
        for chunk in range(3):
            clips: dict[str, Any] = contexts.frames(chunk, masks=mode == "inpaint")
            if mode == "control_ref" and chunk == 1:
                clips["references"] = [contexts.image(0)]
            case.assert_close(f"out.{mode}_chunk{chunk}", contexts.make(**clips))
    for mode in ("firstframe", "lastframe", "firstlastframe"):
        contexts = stream()
        for chunk in range(2):
            case.assert_close(f"out.{mode}_chunk{chunk}", contexts.make(**_image(contexts, mode)))
    fresh = stream()
    for name, clips in {
        "firstframe_inpaint": {"first": fresh.image(0), **fresh.frames(1, masks=True)},
        "firstframe_control": {"first": fresh.image(0), **fresh.frames(1)},
        "lastframe_ref": {"last": fresh.image(1), "references": [fresh.image(2)]},
    }.items():
        case.assert_close(f"out.{name}", stream().make(**clips))


def encoder_engines(case: GoldenCase, place: Place) -> VaeEngines:
    """The encoder of a case, which has no decoder."""
    with torch.device("meta"):
        vae = WanVae(VaeConfig.from_json(case.config["vae"]))
    load_weights(case.checkpoint(), nn.ModuleDict({"encoder": vae.encoder, "conv1": vae.conv1}))
    size = case.config["height"], case.config["width"]

    def engine(first: bool) -> TorchEngine:
        graph = EncoderGraph(vae, first)
        signature = graph.signature(*size)
        run = place(graph, signature, {"F": 2, "T": 8})
        return TorchEngine(
            lambda *values: run(*values),
            tuple(spec.name for spec in signature.inputs),
            tuple(spec.name for spec in signature.outputs),
        )

    first, later = engine(True), engine(False)
    return VaeEngines(first, later, first, later, vae.groups)


REPLAYS: dict[str, Callable[[GoldenCase], None]] = {
    "vace.causal": replay_causal,
    "vace.chunk_preprocess": chunk_preprocess,
    "vace.context_wanvae": context_wanvae,
    "vace.hints_bidirectional": replay_bidirectional,
    "vace.mask_packing": mask_packing,
    "vace.ref_images": ref_images,
}
