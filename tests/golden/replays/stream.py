"""Replays of whole streams: the product's loop, chunk by chunk, on recorded weights, noise and prompts.

The reference ran without its VAE and its text encoder; engines that return what the case recorded stand in
for them. Each case is replayed with a cache of exactly the frames that later chunks read, as engines are
built, and with one of the whole window, whose content can be compared with the reference's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.checkpoints import load_weights
from export.graphs.transformer import TextKV, Transformer, TransformerConfig, pad_prompt
from streaming.engines import Engines, TorchEngine, VaeEngines
from streaming.model import ModelSizes, StreamModel
from streaming.model_pipeline import ModelPipeline, ModelStream
from streaming.noise import Draw
from streaming.specs import SPECS, TEXT, VIDEO, LoopSpec
from streaming.tokens import Patch, unpatchify
from streaming.video import WAN_GROUPS
from tests.golden.case import GoldenCase

DENOISE, CLEAN = "denoise", "clean"


@dataclass
class RecordedNoise:
    """The noise of one chunk at a time, in the order in which the reference drew it."""

    seeds: list[int] = field(default_factory=list)
    draws: list[Tensor] = field(default_factory=list)

    def chunk(self, seed: int) -> Draw:
        self.seeds.append(seed)
        return lambda shape: self.draws.pop(0).reshape(*shape)


@dataclass
class Recorder:
    """What the engines were given and made in one chunk."""

    calls: list[str] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)  # of denoising calls
    flows: list[Tensor] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)  # given to the decoder
    streams_begun: int = 0  # by the decoder

    def clear(self) -> None:
        for kept in (self.calls, self.tokens, self.flows, self.embeddings, self.latents):
            kept.clear()
        self.streams_begun = 0


@dataclass(frozen=True)
class RecordingTransformer:
    """The transformer's engine; remembers what was asked of it."""

    engine: TorchEngine
    seen: Recorder

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.engine.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.engine.outputs

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        results = self.engine.run(inputs, outputs)
        self.seen.calls.append(DENOISE if "flow" in outputs else CLEAN)
        if "flow" in outputs:
            self.seen.tokens.append(inputs["tokens"])
            self.seen.flows.append(results["flow"])
        return results


@dataclass
class StandInVae:
    """Returns recorded video latents, and one black picture for each latent frame."""

    height: int
    width: int
    seen: Recorder
    video_latents: Tensor | None = None  # [1, F, C, h, w], what is left of this chunk's

    def engines(self) -> VaeEngines:
        decoded = ("frames", "new_cache_00")
        return VaeEngines(
            encoder_first=TorchEngine(self._encode, ("frames",), ("z", "new_cache_00")),
            encoder_next=TorchEngine(self._encode, ("frames", "cache_00"), ("z", "new_cache_00")),
            decoder_first=TorchEngine(self._decode_first, ("z",), decoded),
            decoder_next=TorchEngine(self._decode, ("z", "cache_00"), decoded),
            groups=WAN_GROUPS,
        )

    def _encode(self, frames: Tensor, *caches: Tensor) -> tuple[Tensor, Tensor]:
        count = 1 if not caches else frames.shape[2] // WAN_GROUPS.later
        assert self.video_latents is not None, "the case has no video latents for this chunk"
        z, self.video_latents = self.video_latents[:, :count], self.video_latents[:, count:]
        return z.transpose(1, 2), torch.zeros(1)

    def _decode_first(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.streams_begun += 1
        return self._decode(z)

    def _decode(self, z: Tensor, *caches: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.latents.append(z.transpose(1, 2))
        return torch.zeros(1, 3, z.shape[2], self.height, self.width), torch.zeros(1)


@dataclass
class StreamReplay:
    """A stream of a case's pipeline and everything it was fed with."""

    case: GoldenCase
    cache_frames: int
    seen: Recorder = field(default_factory=Recorder)
    noise: RecordedNoise = field(default_factory=RecordedNoise)

    def __post_init__(self) -> None:
        config = self.case.config
        sizes = TransformerConfig.from_json(config["model"])
        with torch.device("meta"):
            transformer, text_kv = Transformer(sizes), TextKV(sizes)
        load_weights(self.case.checkpoint(), transformer, text_kv)
        self.vae = StandInVae(config["height"], config["width"], self.seen)
        engines = Engines(
            RecordingTransformer(engine_of(transformer, transformer.signature(0)), self.seen),
            TorchEngine(self._text_kv(text_kv), *names(text_kv.signature())),
            self.vae.engines(),
        )
        spec = SPECS[config["pipeline"]]
        self.model = StreamModel(
            spec=loop_spec(config),
            engines=engines,
            encode_prompts=lambda texts: [pad_prompt(self.prompt(text), sizes.text_len) for text in texts],
            sizes=ModelSizes(
                sizes.num_layers,
                sizes.num_heads,
                sizes.head_dim,
                sizes.freq_dim,
                sizes.in_dim,
                sizes.patch_size,
            ),
            height=config["height"],
            width=config["width"],
            cache_frames=self.cache_frames,
        )
        self.pipeline = ModelPipeline(spec, self.model, config["base_seed"], self.noise)
        stream = self.pipeline.open_stream()
        assert isinstance(stream, ModelStream)
        self.stream = stream

    def prompt(self, text: str) -> Tensor:
        """The recorded embedding of a prompt; where no texts were recorded, its name is the prompt."""
        return self.case.tensors[embedding_names(self.case).get(text, text)]

    def _text_kv(self, text_kv: TextKV) -> Callable[[Tensor], Sequence[Tensor]]:
        def run(embedding: Tensor) -> Sequence[Tensor]:
            self.seen.embeddings.append(embedding)
            results: Sequence[Tensor] = text_kv(embedding)
            return results

        return run

    def chunk(self, k: int) -> dict[str, Any]:
        """Make chunk k as the case asks for it; returns what the pipeline said and the pictures' shape."""
        tensors = self.case.tensors
        self.seen.clear()
        self.noise.draws = [tensors[f"step{k}.in.noise_init"]]
        while (name := f"step{k}.in.renoise{len(self.noise.draws) - 1}") in tensors:
            self.noise.draws.append(tensors[name])
        self.vae.video_latents = tensors.get(f"step{k}.in.video_latents")
        groups = list(self.stream.next_chunk(*self._request(k), lambda: False))
        pictures = np.concatenate([group for group, _ in groups])
        return {**groups[-1][1], "shape": list(pictures.shape)}

    def _request(self, k: int) -> tuple[dict[str, Any], Any]:
        """Parameters and input pictures. What moved in the pictures was not recorded, only what followed."""
        step = self.case.steps[k]
        video = f"step{k}.in.video_latents" in self.case.tensors
        steps = self.case.meta.get("denoising_step_list")
        parameters = {
            "input_mode": VIDEO if video else TEXT,
            "prompts": [{"text": step["cond"], "weight": 1.0}],
            "init_cache": k == 0,
            **({"denoising_step_list": steps} if steps else {}),
            **step.get("request", {}),
        }
        if video:
            parameters |= {"noise_controller": False, "noise_scale": step["noise_scale"]}
        size = (self.model.height, self.model.width)
        pictures = np.zeros((self.pipeline.spec.input_frames_per_chunk, *size, 3), np.uint8)
        return parameters, pictures if video else None


def embedding_names(case: GoldenCase) -> Mapping[str, str]:
    """Prompt texts of the case -> names of their embeddings.

    A case that records no texts has one embedding for each: that of the chunk that asks for it first.
    """
    if "text_embeddings" in case.meta:
        recorded: Mapping[str, str] = case.meta["text_embeddings"]
        return recorded
    found: dict[str, str] = {}
    for step in case.steps:
        request = step.get("request", {})
        wanted = request.get("transition") or {}
        for prompt in request.get("prompts", []) if not wanted else []:
            found.setdefault(prompt["text"], step["cond"])
        if wanted and not step["transition_active"]:
            found.setdefault(wanted["target_prompts"][0]["text"], step["cond"])
    return found


def names(signature: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(s.name for s in signature.inputs), tuple(s.name for s in signature.outputs)


def engine_of(module: Callable[..., Sequence[Tensor]], signature: Any) -> TorchEngine:
    return TorchEngine(module, *names(signature))


def loop_spec(config: Mapping[str, Any]) -> LoopSpec:
    """The pipeline's own loop with the sizes of the case."""
    loop = SPECS[config["pipeline"]].loop
    assert loop is not None, f"pipeline '{config['pipeline']}' has no loop"
    given, model = config["pipeline_config"], config["pipeline_config"]["base_model_kwargs"]
    return replace(
        loop,
        frames_per_chunk=given["num_frame_per_block"],
        local_attn_size=given["local_attn_size"],
        sink_size=model["sink_size"],
        global_sink=given["global_sink"],
        rope_positions=given["max_rope_freq_table_seq_len"],
        timestep_shift=model["timestep_shift"],
        record_interval=given.get("record_interval"),
        bank_size=model.get("bank_size", 0),
    )


def replay_stream(case: GoldenCase) -> None:
    """All chunks in order, with both sizes of the cache."""
    loop = loop_spec(case.config)
    for cache_frames in (loop.cache_frames, loop.local_attn_size):
        stream = StreamReplay(case, cache_frames)
        for k, step in enumerate(case.steps):
            said = stream.chunk(k)

            assert_decisions(case, k, step, stream, said)
            assert_tensors(case, k, stream)
            if cache_frames == loop.local_attn_size:
                assert_cache(case, k, step, stream)


def assert_decisions(
    case: GoldenCase, k: int, step: Mapping[str, Any], stream: StreamReplay, said: Mapping[str, Any]
) -> None:
    """What the case says in words and numbers about chunk k."""
    seen, where = stream.seen, f"steps[{k}]"
    calls = [DENOISE if call["kind"] == "denoise" else CLEAN for call in step["calls"]]
    case.assert_equal(f"{where}.calls", seen.calls, calls)
    case.assert_equal(
        f"{where}.start_frame", stream.noise.seeds[-1], case.config["base_seed"] + step["start_frame"]
    )
    case.assert_equal(f"{where}.conditioning_updated", bool(seen.embeddings), step["conditioning_updated"])
    case.assert_equal(f"{where}.transition_active", said["transition_active"], step["transition_active"])
    case.assert_equal(f"{where}.vae_cache_cleared", seen.streams_begun, step["vae_cache_cleared"])
    case.assert_equal(f"{where}.output_video_shape", said["shape"], step["output_video_shape"])
    case.assert_equal(f"{where}: noise left over", len(stream.noise.draws), 0)


def assert_tensors(case: GoldenCase, k: int, stream: StreamReplay) -> None:
    """Latents of the chunk, flow and x_0 of each step where they were recorded, and the prompt embedding."""
    seen, tensors, session = stream.seen, case.tensors, stream.stream.session
    case.assert_close(f"step{k}.out.latents", torch.cat(seen.latents, dim=1))
    embedding = session.conditioning.embedding
    assert embedding is not None, f"{case}: chunk {k} has no prompt embedding"
    case.assert_close(case.steps[k]["cond"], embedding)
    timesteps = [call["timestep"] for call in case.steps[k]["calls"] if call["kind"] == "denoise"]
    patch, size = stream.model.sizes.patch, stream.model.latent_size
    for j, timestep in enumerate(timesteps):
        flow = unpatchify(seen.flows[j], *size, patch)
        x_t = from_input_tokens(seen.tokens[j], *size, patch)
        x_0 = stream.model.schedule.to_x0(flow, x_t, torch.full(flow.shape[:2], float(timestep)))
        for name, actual in ((f"step{k}.out.flow_{j}", flow), (f"step{k}.out.x0_{j}", x_0)):
            if name in tensors:
                case.assert_close(name, actual)


def assert_cache(case: GoldenCase, k: int, step: Mapping[str, Any], stream: StreamReplay) -> None:
    """Counters, and the content of every layer in order of age where it was recorded."""
    kv, after = stream.stream.session.kv, step["calls"][-1]["kv_after"]
    frames = {"global_end": stream.stream.session.start, "local_end": len(kv.ring.held)}
    case.assert_equal(f"steps[{k}].calls[-1].kv_after", frames, after)
    for layer in range(len(kv.layers)):
        for part, name in enumerate("kv"):
            recorded = case.tensors.get(f"step{k}.state.kv.{layer}.{name}")
            if recorded is not None:
                rows = kv.in_order(layer)[part]
                unused = rows.new_zeros(1, recorded.shape[1] - rows.shape[1], *rows.shape[2:])
                case.assert_close(f"step{k}.state.kv.{layer}.{name}", torch.cat([rows, unused], dim=1))


def from_input_tokens(tokens: Tensor, h: int, w: int, patch: Patch) -> Tensor:
    """Inverse of `patchify`: [B, T, C * patch], channel slowest -> [B, F, C, h, w]."""
    _, ph, pw = patch
    x = tokens.unflatten(2, (-1, ph, pw)).movedim(2, 4).flatten(2)
    return unpatchify(x, h, w, patch)


REPLAYS: dict[str, Callable[[GoldenCase], None]] = {"stream": replay_stream}
