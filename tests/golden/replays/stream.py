"""Replays of whole streams: the product's loop, chunk by chunk, on recorded weights, noise and prompts.

The reference ran without its VAE and its text encoder; engines that return what the case recorded stand in
for them. Each case is replayed with a cache of exactly the frames that later chunks read, as engines are
built, and with one of the whole window, whose content can be compared with the reference's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from export.checkpoints.checkpoints import load_weights
from export.graphs.transformer import TextKV, Transformer
from export.pytorch.engine import ModuleEngine
from export.pytorch.pipeline import stream_sizes
from streaming.checkpoints.config import Patch, TransformerConfig
from streaming.engines.engine import Engine, Engines, EngineWrapper, TorchEngine, VaeEngines
from streaming.network.model import StreamModel
from streaming.network.tokens import unpatchify
from streaming.noise import Draw, SeededNoise
from streaming.specs import CachedKeys
from streaming.triton.model_pipeline import ModelPipeline, ModelStream
from streaming.triton.protocol import Meta
from tests.frame_groups import WAN_GROUPS
from tests.golden.case import GoldenCase
from tests.golden.replays.stream_cases import DENOISE, WRITE, ChunkCase, StreamCase, read_stream
from tests.transformer_inputs import pad_prompt

GREY_STEP = 1e-3  # between one picture of the stand-in decoder and the next


@dataclass
class RecordedNoise:
    """The noise of one chunk at a time, in the order in which the reference drew it."""

    draws: list[Tensor] = field(default_factory=list)
    seed: int = -1

    def chunk(self, seed: int) -> Draw:
        self.seed = seed
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
    reencoded_picture: int | None = None  # the one that was encoded alone
    written: Tensor | None = None  # tokens of the last call for keys and values
    last_kv: list[Tensor] = field(default_factory=list)  # of the last denoising call, per layer


class RecordingEngine(EngineWrapper):
    """The transformer's engine, or the one of its text side; notes what is asked of it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.seen = Recorder()

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        results = super().run(inputs, self.outputs)
        if "prompt_embeds" in inputs:
            self.seen.embeddings.append(inputs["prompt_embeds"])
        elif "flow" in outputs:
            self.seen.calls.append(DENOISE)
            self.seen.tokens.append(inputs["tokens"])
            self.seen.flows.append(results["flow"])
            self.seen.last_kv = [results[name] for name in self.outputs if name != "flow"]
        else:
            self.seen.calls.append(WRITE)
            self.seen.written = inputs["tokens"]
        return {name: results[name] for name in outputs}


@dataclass
class StandInVae:
    """Returns recorded latents as z and as mu, and grey pictures that tell their number in the stream."""

    height: int
    width: int
    pictures_per_latent: int
    seen: Recorder = field(default_factory=Recorder)
    video_latents: Tensor | None = None  # [1, F, C, h, w], what is left of this chunk's
    reencoded_latent: Tensor | None = None  # [1, 1, C, h, w], of a picture of the stream itself
    decoded: int = 0  # pictures since the stream began

    def engines(self) -> VaeEngines:
        encoded, decoded = ("z", "mu", "new_cache_00"), ("frames", "new_cache_00")
        return VaeEngines(
            encoder_first=TorchEngine(self._encode, ("frames",), encoded),
            encoder_next=TorchEngine(self._encode, ("frames", "cache_00"), encoded),
            decoder_first=TorchEngine(self._decode, ("z",), decoded),
            decoder_next=TorchEngine(self._decode, ("z", "cache_00"), decoded),
            groups=WAN_GROUPS,
        )

    def _encode(self, frames: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        if self.reencoded_latent is not None and not caches:
            self.seen.reencoded_picture = round(frames.mean().item() / GREY_STEP)
            z = self.reencoded_latent.transpose(1, 2)
            return z, z, torch.zeros(1)
        count = frames.shape[2] // WAN_GROUPS.later if caches else WAN_GROUPS.first
        assert self.video_latents is not None, "the case has no video latents for this chunk"
        z, self.video_latents = self.video_latents[:, :count], self.video_latents[:, count:]
        return z.transpose(1, 2), z.transpose(1, 2), torch.zeros(1)

    def _decode(self, z: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        self.seen.streams_begun += not caches
        self.seen.latents.append(z.transpose(1, 2))
        first = self.decoded if caches else 0
        self.decoded = first + (self.pictures_per_latent if caches else 1)
        grey = torch.arange(first, self.decoded) * GREY_STEP
        return grey.reshape(1, 1, -1, 1, 1).repeat(1, 3, 1, self.height, self.width), torch.zeros(1)


class StreamReplay:
    """A stream of a case's pipeline, and everything it is fed with."""

    def __init__(
        self,
        stream: StreamCase,
        cache_frames: int,
        transformer: Engine,
        text_kv: Engine,
        spare_bias: bool = False,
    ) -> None:
        config, case = stream.case.config, stream.case
        sizes = TransformerConfig.from_json(config["model"])
        self.transformer, self.text_kv = RecordingEngine(transformer), RecordingEngine(text_kv)
        self.vae = StandInVae(config["height"], config["width"], stream.pictures_per_latent)
        self.noise = RecordedNoise()
        self.seen = Recorder()
        self.model = StreamModel(
            spec=stream.loop,
            engines=Engines(self.transformer, self.text_kv, self.vae.engines()),
            encode_prompts=lambda texts: [
                pad_prompt(case.tensors[stream.prompts.get(text, text)], sizes.text_len) for text in texts
            ],
            sizes=stream_sizes(sizes),
            height=config["height"],
            width=config["width"],
            cache_frames=cache_frames,
            spare_bias=spare_bias,
        )
        pipeline = ModelPipeline(stream.pipeline, self.model, config["base_seed"], self.noise)
        self.stream = ModelStream(pipeline)

    def make(self, chunk: ChunkCase) -> tuple[Meta, list[int]]:
        """Make a chunk; returns what the pipeline says at its end, and the shape of all pictures."""
        self.seen = self.transformer.seen = self.text_kv.seen = self.vae.seen = Recorder()
        self.noise.draws = list(chunk.noise)
        self.vae.video_latents, self.vae.reencoded_latent = chunk.video_latents, chunk.reencoded_latent
        groups = list(self.stream.next_chunk(chunk.parameters, chunk.pictures, lambda: False))
        return groups[-1][1], list(np.concatenate([pictures for pictures, _ in groups]).shape)


def torch_modules(stream: StreamCase) -> tuple[Transformer, TextKV]:
    """The two graphs of a case, with its weights."""
    sizes = TransformerConfig.from_json(stream.case.config["model"])
    with torch.device("meta"):
        transformer = Transformer(sizes, stream.loop.cached_keys is CachedKeys.UNROTATED)
        text_kv = TextKV(sizes)
    load_weights(stream.case.checkpoint(), transformer, text_kv)
    return transformer, text_kv


def torch_engines(stream: StreamCase) -> tuple[Engine, Engine]:
    """Transformer and text side of a case as PyTorch modules."""
    transformer, text_kv = torch_modules(stream)
    return (
        ModuleEngine(transformer, transformer.signature(0)),
        ModuleEngine(text_kv, text_kv.signature()),
    )


def replay_stream(
    case: GoldenCase,
    place: Callable[[StreamCase], tuple[Engine, Engine]] = torch_engines,
    *,
    spare_bias: bool = False,
) -> None:
    """All chunks in order, with both sizes of the cache. `place` makes the transformer and its text side."""
    stream = read_stream(case)
    engines = place(stream)
    for cache_frames in (stream.loop.cache_frames, stream.loop.local_attn_size):
        replay = StreamReplay(stream, cache_frames, *engines, spare_bias=spare_bias)
        for k, chunk in enumerate(stream.chunks):
            meta, shape = replay.make(chunk)

            assert_decisions(case, k, chunk, replay, meta, shape)
            assert_tensors(case, k, chunk, replay)
            assert_bank(case, k, replay, stream.bank_names)
            if cache_frames == stream.loop.local_attn_size:
                assert_cache(case, k, chunk, replay, stream.kv_names)
    assert_seeds(case, stream)


def assert_decisions(
    case: GoldenCase, k: int, chunk: ChunkCase, replay: StreamReplay, meta: Meta, shape: list[int]
) -> None:
    """What the case says in words and numbers about chunk k."""
    actual = {
        "calls": replay.seen.calls,
        "seed": replay.noise.seed,
        "resets": replay.seen.streams_begun > 0,
        "start_after": replay.stream.session.start,
        "output_shape": shape,
        "updated": bool(replay.seen.embeddings),
        "in_transition": meta["transition_active"],
        "records_after": replay.stream.session.bank.records,
        "reencoded_picture": replay.seen.reencoded_picture,
    }
    for name, value in actual.items():
        expected = getattr(chunk, name)
        if expected is not None:
            case.assert_equal(f"steps[{k}]: {name}", value, expected)
    case.assert_equal(f"steps[{k}]: noise left over", len(replay.noise.draws), 0)


def assert_tensors(case: GoldenCase, k: int, chunk: ChunkCase, replay: StreamReplay) -> None:
    """Latents before and after denoising, flow and x_0 of its steps, the prompt embedding; as recorded."""
    seen, model = replay.seen, replay.model
    embedding = replay.stream.session.prompt.embedding
    assert embedding is not None, f"{case}: chunk {k} has no prompt embedding"
    results = {f"step{k}.out.latents": torch.cat(seen.latents, dim=1), chunk.embedding: embedding}
    for j, timestep in enumerate(chunk.timesteps):
        flow = unpatchify(seen.flows[j], *model.latent_size, model.sizes.patch)
        x_t = from_input_tokens(seen.tokens[j], *model.latent_size, model.sizes.patch)
        x_0 = model.schedule.to_x0(flow, x_t, torch.full(flow.shape[:2], timestep))
        results |= {f"step{k}.out.flow_{j}": flow, f"step{k}.out.x0_{j}": x_0}
        if j == 0:
            results[f"step{k}.out.noisy_latents"] = x_t
    if seen.written is not None:
        written = from_input_tokens(seen.written, *model.latent_size, model.sizes.patch)
        results[f"step{k}.out.context_frames"] = written
    for name, actual in results.items():
        if name in case.tensors:
            case.assert_close(name, actual)


def assert_cache(case: GoldenCase, k: int, chunk: ChunkCase, replay: StreamReplay, names: str) -> None:
    """How much is cached, and every layer's rows in order of age; rows that hold nothing are undefined.

    Where the cache is made before a chunk, the reference has the chunk itself in it too, from the last
    denoising call.
    """
    kv = replay.stream.session.kv
    recomputed = replay.model.spec.cached_keys is CachedKeys.RECOMPUTED
    own = torch.cat(replay.seen.latents, dim=1).shape[1] if recomputed else 0
    case.assert_equal(f"steps[{k}]: cached frames", len(kv.ring.frames) + own, chunk.held_after)
    for layer in range(len(kv.slots.layers)):
        made, after = kv.in_order(layer), [replay.seen.last_kv[layer]] if recomputed else []
        caches = {names: torch.cat([made, *after], dim=2), names.replace(".kv", ".recomputed_kv"): made}
        for index, part in enumerate("kv"):
            for form, rows in caches.items():
                name = form.format(k=k, layer=layer, part=part)
                if name in case.tensors:
                    undefined = case.tensors[name][:, rows[index].shape[1] :]
                    case.assert_close(name, torch.cat([rows[index], undefined], dim=1))


def assert_bank(case: GoldenCase, k: int, replay: StreamReplay, names: str) -> None:
    """Blocks of the memory bank, in their order, and the frame recorded last; zeros where none is."""
    bank, cache = replay.stream.session.bank, replay.stream.session.kv
    for layer, memory in enumerate(cache.slots.layers):
        frame = memory[:, :, : cache.slots.tokens_per_frame]
        empty = torch.zeros_like(frame)
        blocks = [block.kv for block in bank.blocks[layer]] if bank.blocks else []
        blocks += [empty] * (bank.size - len(blocks))
        pending = bank.pending[layer].kv if bank.pending else empty
        for index, part in enumerate("kv"):
            for name, tensors in {part: blocks, f"{part}_new": [pending]}.items():
                recorded = names.format(k=k, layer=layer, part=name)
                if recorded in case.tensors:
                    case.assert_close(recorded, torch.cat([tensor[index] for tensor in tensors], dim=1))


def assert_seeds(case: GoldenCase, stream: StreamCase) -> None:
    """The product's own noise is the recorded noise where that came from torch's generator on a CPU."""
    for k, chunk in enumerate(stream.chunks if "rng" in case.meta else []):
        draw = SeededNoise().chunk(chunk.seed)
        for recorded in chunk.noise:
            drawn = draw(recorded.shape)
            same = torch.allclose(drawn, recorded, atol=1e-5)  # another processor may round otherwise
            case.assert_equal(f"steps[{k}]: the noise is that of seed {chunk.seed}", same, True)


def from_input_tokens(tokens: Tensor, h: int, w: int, patch: Patch) -> Tensor:
    """Inverse of `patchify`: [B, T, C * patch], channel slowest -> [B, F, C, h, w]."""
    _, ph, pw = patch
    x = tokens.unflatten(2, (-1, ph, pw)).movedim(2, 4).flatten(2)
    return unpatchify(x, h, w, patch)


REPLAYS: dict[str, Callable[[GoldenCase], None]] = {"stream": replay_stream}
