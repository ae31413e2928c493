"""Training of the causal transformer on films, so that the product's few steps need no distillation.

A sample is [clean context of some blocks | noisy copies of the next block at different timesteps]; one
forward with a mask by blocks computes all of it, with the same keys and values as the product's clean passes.
Later the last blocks of the context are in part the network's own work, made by the product's four steps.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae_graphs import WAN_LATENT_MEAN, WAN_LATENT_STD, LatentScale
from export.nano.averaged import AveragedTraining
from export.nano.captured import Graphs
from export.nano.films import CHUNK, CHUNKS, FilmBank
from export.nano.optim import MuonAdam
from export.nano.text import TEXT_LEN
from export.nano.world import CPU
from streaming.checkpoints.config import TransformerConfig
from streaming.network.tokens import patchify, rope_tables, time_sinusoid, unpatchify

CONFIG: Final = TransformerConfig(
    dim=128, ffn_dim=512, num_heads=4, num_layers=4, text_dim=128, text_len=TEXT_LEN
)
STEPS: Final = (1000.0, 750.0, 500.0, 250.0)  # the product's, all of which must work in one call
COUPLED_FROM: Final = 900.0  # timestep above which the noise says where the shape is

Params = Mapping[str, Tensor]


def couple(noise: Tensor, centre: Tensor, size: tuple[int, int]) -> Tensor:
    """Noise whose slowest waves have their crest at a place; for a random place it is still plain noise.

    A transformer without absolute positions cannot put a shape "anywhere": it would have to choose. So the
    noise chooses, by the phase of its first Fourier mode in x and in y (summed over all else). The amplitude
    is kept, so that the result is Gaussian when the place is uniform on the torus.

    noise   [B, F, C, h, w]
    centre  [B, 2], x and y in pixels of a picture of `size`
    """
    noise = noise.clone()
    count = noise[0].numel()
    for axis, length, place in ((4, size[1], centre[:, 0]), (3, size[0], centre[:, 1])):
        tokens = noise.shape[axis] // 2
        angle = 2 * math.pi * (torch.arange(tokens, device=noise.device).repeat_interleave(2) + 0.5) / tokens
        shape = [1] * 5
        shape[axis] = -1
        waves = [(wave / (count / 2) ** 0.5).reshape(shape) for wave in (angle.cos(), angle.sin())]
        parts = [(noise * wave).sum(dim=(1, 2, 3, 4)) for wave in waves]
        amplitude = torch.hypot(parts[0], parts[1])
        phase = 2 * math.pi * place / length
        for wave, part, wanted in zip(waves, parts, (phase.cos(), phase.sin()), strict=True):
            noise += (amplitude * wanted - part).reshape(-1, 1, 1, 1, 1) * wave
    return noise


def new_transformer(seed: int) -> tuple[Transformer, TextKV]:
    """Random weights; the first layer's heads begin as low-pass filters of the places around, see below."""
    torch.manual_seed(seed)
    modules = Transformer(CONFIG), TextKV(CONFIG)
    for module in modules:
        for name, p in module.named_parameters():
            if name.endswith("modulation"):
                nn.init.zeros_(p)
                if name.startswith("blocks"):
                    with torch.no_grad():
                        p[:, [2, 5]] = 1.0
            elif p.ndim == 2:
                nn.init.xavier_uniform_(p)
                factors = {".o.": 0.3, ".ffn.2.": 0.3, "time_projection": 0.1, "head.": 0.0}
                with torch.no_grad():
                    for part, factor in factors.items():
                        p.mul_(factor if part in name else 1.0)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
            else:
                nn.init.ones_(p)
    _look_around(modules[0])
    return modules


@torch.no_grad()
def _look_around(transformer: Any) -> None:
    """Head 0 and 1 of the first layer see cosine and sine of the distance in x, head 2 and 3 in y.

    By constant queries and keys in the fastest rotary pair of that axis, whose period of 2 pi tokens is about
    the 6 tokens of the picture: so the layer measures exactly the wave that `couple` sets. One direction of
    the embedding begins as the plain sum over a token.
    """
    block, d = transformer.blocks[0], CONFIG.head_dim
    spatial = d // 6
    first = d // 2 - 2 * spatial  # complex numbers of the frame axis
    for head, (pair, phase) in enumerate(
        ((first + spatial, 0.0), (first + spatial, math.pi / 2), (first, 0.0), (first, math.pi / 2))
    ):
        at = head * d + 2 * pair
        block.self_attn.k.bias[at] = 2.0
        block.self_attn.q.bias[at] = 2.0 * math.cos(phase)
        block.self_attn.q.bias[at + 1] = 2.0 * math.sin(phase)
    for layer in (block.self_attn.q, block.self_attn.k):
        layer.weight_t *= 0.2
    for norm in (block.self_attn.norm_q, block.self_attn.norm_k):
        norm.weight *= 0.6
    transformer.patch_embedding.weight_t[:, 0] = 3 / transformer.patch_embedding.weight_t.shape[0] ** 0.5
    for head in range(CONFIG.num_heads):
        block.self_attn.v.weight_t[:, head * d] = 0.0
        block.self_attn.v.weight_t[0, head * d] = 2.0


def forward(
    p: Params,
    config: TransformerConfig,
    x: Tensor,
    timestep: Tensor,
    embedding: Tensor,
    tables: tuple[Tensor, Tensor],
    bias: Tensor | None,
) -> Tensor:
    """The flow of `Transformer` and `TextKV` together, in bfloat16, for training.

    x          [B, F, 16, h, w]
    timestep   [B, F]
    embedding  [B, rows, text_dim]; the rows up to text_len that are missing are zero
    tables     `rope_tables` of the F latent frames
    bias       [tokens, tokens], 0 or very negative, or None
    returns    float32 [B, F, 16, h, w]
    """
    rows, columns = x.shape[3] // 2, x.shape[4] // 2
    tokens, heads, d = rows * columns, config.num_heads, config.head_dim
    B, frames = x.shape[:2]
    cos, sin = (table.bfloat16().repeat_interleave(2, 1).reshape(1, 1, -1, 1, d) for table in tables)
    turn = _turn(d, x.device)
    text, text_bias = _text(p, embedding, config)
    h = patchify(x).bfloat16() @ p["patch_embedding.weight_t"] + p["patch_embedding.bias"]
    e = F.silu(_linear(p, "time_embedding.0", time_sinusoid(timestep, config.freq_dim).bfloat16()))
    e = _linear(p, "time_embedding.2", e)
    e0 = _linear(p, "time_projection.1", F.silu(e)).reshape(B, frames, 6, 1, -1)
    h = h.reshape(B, frames, tokens, -1)
    for i in range(config.num_layers):
        b = f"blocks.{i}."
        m = (p[b + "modulation"].reshape(1, 1, 6, 1, -1) + e0).unbind(2)
        y = (F.layer_norm(h, h.shape[-1:]) * (1 + m[1]) + m[0]).flatten(1, 2)
        a = b + "self_attn."
        q = _norm(_linear(p, a + "q", y), p[a + "norm_q.weight"] * d**-0.5)
        k = _norm(_linear(p, a + "k", y), p[a + "norm_k.weight"])
        qk = torch.stack([q, k]).reshape(2, B, -1, heads, d)
        q, k = (qk * cos + (qk @ turn) * sin).transpose(2, 3).unbind(0)
        v = _linear(p, a + "v", y).reshape(B, -1, heads, d).transpose(1, 2)
        y = _attend(q, k, v, bias)
        y = _linear(p, a + "o", y.transpose(1, 2).flatten(2)).reshape(B, frames, tokens, -1)
        h = h + y * m[2]
        c = b + "cross_attn."
        y = F.layer_norm(h, h.shape[-1:]).flatten(1, 2) * p[b + "norm3.weight"] + p[b + "norm3.bias"]
        q = _norm(_linear(p, c + "q", y), p[c + "norm_q.weight"] * d**-0.5)
        k, v = _norm(_linear(p, c + "k", text), p[c + "norm_k.weight"]), _linear(p, c + "v", text)
        q, k, v = (t.reshape(B, -1, heads, d).transpose(1, 2) for t in (q, k, v))
        y = _attend(q, k, v, text_bias)
        h = h + _linear(p, c + "o", y.transpose(1, 2).flatten(2)).reshape(B, frames, tokens, -1)
        y = F.layer_norm(h, h.shape[-1:]) * (1 + m[4]) + m[3]
        y = _linear(p, b + "ffn.2", F.gelu(_linear(p, b + "ffn.0", y), approximate="tanh"))
        h = h + y * m[5]
    shift, scale = (p["head.modulation"].reshape(1, 1, 2, 1, -1) + e.reshape(B, frames, 1, 1, -1)).unbind(2)
    y = _linear(p, "head.head", F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift).flatten(1, 2)
    return unpatchify(y.float(), x.shape[3], x.shape[4])


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """[B, heads, tokens, d]; the queries are scaled already."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    logits = q @ k.transpose(2, 3)  # faster on a CPU, at these sizes
    return torch.softmax(logits if bias is None else logits + bias, -1) @ v


def _linear(p: Params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[name + ".weight_t"].t(), p[name + ".bias"])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * weight


@cache
def _turn(d: int, device: torch.device) -> Tensor:
    """x @ turn = (-x1, x0, -x3, x2, ...)."""
    turn = torch.zeros(d, d, dtype=torch.bfloat16, device=device)
    even = torch.arange(0, d, 2)
    turn[even, even + 1], turn[even + 1, even] = 1.0, -1.0
    return turn


def _text(p: Params, embedding: Tensor, config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Context rows, and the bias [1, rows] of their keys: the zero rows at the end are one, weighted."""
    missing = config.text_len - embedding.shape[1]
    rows = F.pad(embedding, (0, 0, 0, min(missing, 1)))
    bias = torch.zeros(1, rows.shape[1], dtype=torch.bfloat16, device=rows.device)
    if missing:
        bias[:, -1] = math.log(missing)
    text = F.gelu(_linear(p, "text_embedding.0", rows.bfloat16()), approximate="tanh")
    return _linear(p, "text_embedding.2", text), bias


@dataclass(frozen=True, slots=True)
class Layout:
    """One kind of training sample.

    past    latent frames of each block of clean context
    new     latent frames of the block to come
    start   from the start of a stream; else from its middle
    sink    latent frames of `past` that are the sink's, when it is from the middle
    rolled  blocks at the end of `past` that the network itself has made
    copies  of the new block, each with its own noise and timestep
    shares  how often it is drawn, in the first part of the training and in the second
    """

    past: tuple[int, ...]
    new: int
    start: bool
    shares: tuple[float, float]
    sink: int = 0
    rolled: int = 0
    copies: int = 2

    @property
    def frames(self) -> int:
        return sum(self.past) + self.new * self.copies

    @property
    def name(self) -> str:
        past = "+".join(map(str, self.past)) or "none"
        return f"{past}->{self.new}{'' if self.start else ' later'}{' rolled' * bool(self.rolled)}"


# In the first part mostly first chunks, which are the hardest; then what goes on from them. Chunks of three
# frames for LongLive and its like, of one frame for StreamDiffusionV2, four frames for a first video chunk.
LAYOUTS: Final = (
    Layout((), 3, True, (6.0, 2.5), copies=1),
    Layout((), 4, True, (0.3, 0.3), copies=1),
    Layout((), 2, True, (0.7, 0.5), copies=1),
    Layout((3,), 3, True, (1.5, 1.0)),
    Layout((3, 3), 3, True, (0.7, 0.7)),
    Layout((3, 3, 3), 3, True, (0.5, 0.5)),
    Layout((3,), 3, False, (0.3, 0.3)),
    Layout((3, 3), 3, False, (0.5, 0.6), sink=3),
    Layout((3, 3, 3), 3, False, (0.7, 1.0), sink=3),
    Layout((2,), 1, True, (0.2, 0.3)),
    Layout((2, 1, 1), 1, True, (0.2, 0.3)),
    Layout((2, 1, 1, 1), 1, False, (0.3, 0.6), sink=3),
    Layout((3,), 3, True, (0.0, 1.2), rolled=1),
    Layout((3, 3), 3, True, (0.0, 0.6), rolled=2),
    Layout((3, 3, 3), 3, False, (0.0, 1.2), sink=3, rolled=1),
    Layout((2, 1, 1, 1), 1, False, (0.0, 0.4), sink=3, rolled=1),
)
FIRST_PART: Final = 0.4  # of the steps
VIDEO_PART: Final = 0.15  # of noisy copies are a video with noise mixed in, as in camera mode
RAW_PART: Final = 0.3  # of those in blocks of one frame are latents without normalisation: StreamDiffusionV2
BIAS: Final = -1e4


def block_bias(past: Sequence[int], new: int, copies: int) -> Tensor:
    """[F, F]: a context block sees itself and older ones, a copy of the new block all context and itself."""
    blocks = [*past, *[new] * copies]
    seen = torch.eye(len(blocks), dtype=torch.bool)
    seen[:, : len(past)] |= torch.tril(torch.ones(len(blocks), len(past), dtype=torch.bool))
    lengths = torch.tensor(blocks)
    bias = torch.zeros(len(blocks), len(blocks)).masked_fill(~seen, BIAS)
    return bias.repeat_interleave(lengths, 0).repeat_interleave(lengths, 1)


class TransformerTraining(AveragedTraining):
    """The training of the transformer on films.

    frames  latent frames of a batch, about
    """

    def __init__(
        self,
        bank: FilmBank,
        size: tuple[int, int],
        seed: int,
        steps: int,
        peak: float = 2e-3,
        frames: int = 36,
        average: float = 0.995,
        device: torch.device = CPU,
    ) -> None:
        self.bank, self.size, self.device = bank, size, device
        self.steps, self.done, self.peak, self.frames, self.keep = steps, 0, peak, frames, average
        self.modules = [module.to(device) for module in new_transformer(seed)]
        self.params = {n: q for module in self.modules for n, q in module.named_parameters()}
        self.average = {n: q.detach().clone() for n, q in self.params.items()}
        self.rng = random.Random(seed)
        self.generator = torch.Generator(device).manual_seed(seed)
        matrices = [
            q
            for n, q in self.params.items()
            if q.ndim == 2 and n.split(".")[0] in ("blocks", "text_embedding")
        ]
        chosen = {id(q) for q in matrices}
        others = [q for q in self.params.values() if id(q) not in chosen]
        self.optimiser = MuonAdam(matrices, others, decay=0.01, adam_factor=0.5)
        graphs = Graphs()
        self._gradients = {each: graphs.captured(partial(self._take_gradients, each)) for each in LAYOUTS}
        self._rollouts = {each: graphs.captured(partial(self._roll, each)) for each in LAYOUTS if each.rolled}
        self._biases: dict[tuple[object, ...], Tensor] = {}
        scale = LatentScale(WAN_LATENT_MEAN, WAN_LATENT_STD)
        self._raw = scale.mean.transpose(1, 2).to(device), scale.std.transpose(1, 2).to(device)

    def weights(self) -> Params:
        """What `forward` computes with."""
        return {name: q.bfloat16() for name, q in self.params.items()}

    def rate(self) -> float:
        warm = min(1.0, (self.done + 1) / 100)
        return self.peak * warm * min(1.0, max(0.02, 3 * (1 - self.done / self.steps)))

    def step(self) -> dict[str, Tensor]:
        layout = self.draw_layout()
        *inputs, tables = self.sample(layout)
        error, at_first = self._gradients[layout](*inputs, *tables)
        self.advance(self.rate(), self.keep)
        return {layout.name: error.clone(), f"{layout.name} first": at_first.clone()}

    def draw_layout(self) -> Layout:
        """The kind of the next sample."""
        late = self.done >= FIRST_PART * self.steps
        return self.rng.choices(LAYOUTS, [each.shares[late] for each in LAYOUTS])[0]

    def sample(self, layout: Layout) -> tuple[Any, ...]:
        """What `_take_gradients` takes, of films drawn at random."""
        count = max(1, round(self.frames / layout.frames))
        bank, past = self.bank, sum(layout.past)
        begin, end = (0, bank.starts) if layout.start else (bank.starts, len(bank.latents))
        films = self._random(begin, end, (count,))
        at = self._begin(layout)
        take = [*range(layout.sink), *range(at, at + past - layout.sink + layout.new)]
        latents = bank.latents[films][:, take].float()
        context, target = latents[:, :past], latents[:, past:]
        # The text is that of the frames to come, also for the context: LongLive computes its cache anew.
        embedding = bank.embeddings[films, take[-layout.new] // CHUNK].float()
        positions = self._positions(layout, at, take)
        if layout.rolled:
            context = self._rolled(layout, films, context, take, positions)
        strength = 0.15 * self._uniform((count, 1, 1, 1, 1)) * (self._uniform((count, 1, 1, 1, 1)) < 0.7)
        context = context + strength * self._normal(context.shape)
        x_t, t, target = self._noisy(layout, target, bank.places[films])
        tables = self._tables([*positions[:past], *positions[past:] * layout.copies])
        return context, x_t, t, target, embedding, tables

    def _begin(self, layout: Layout) -> int:
        """Index in the film of the first frame after the sink."""
        if layout.start:
            return 0
        block = layout.new
        last = CHUNKS * CHUNK - (sum(layout.past) - layout.sink) - block
        return CHUNK + block * self.rng.randrange((last - CHUNK) // block + 1)

    def _positions(self, layout: Layout, at: int, take: Sequence[int]) -> list[int]:
        """Of the frames, in the stream: the sink is at its beginning, the rest goes on anywhere later."""
        if layout.start:
            return list(take)
        far = self.rng.choice((0, 30, 300, 1000))
        offset = self.rng.randrange(far - 20) if far else 0
        return [*range(layout.sink), *(index - at + CHUNK + offset for index in take[layout.sink :])]

    def _noisy(self, layout: Layout, target: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t [B, new * copies, ...], its timesteps [B, new * copies], and the target as often."""
        count, new, copies = len(target), layout.new, layout.copies
        clean = target.repeat(1, copies, 1, 1, 1)
        weights = (4.0, 1.0, 1.0, 1.0) if not layout.past else (2.0, 1.0, 1.0, 1.0)
        cells = (count, copies)
        drawn = torch.multinomial(
            torch.tensor(weights, device=self.device), count * copies, True, generator=self.generator
        )
        u = self._uniform(cells)
        listed = torch.tensor(STEPS, device=self.device)[drawn].reshape(cells)
        t = torch.where(self._uniform(cells) < 0.75, listed, 1000 * 5 * u / (1 + 4 * u))
        mixed = t / 1000
        video = self._uniform(cells) < VIDEO_PART
        if new == 4:  # a first chunk of video
            video = torch.ones_like(video)
        scale = 0.3 + 0.65 * self._uniform(cells)
        t, mixed = torch.where(video, 1000 * scale - 100, t), torch.where(video, scale, mixed)
        t, mixed, video = (each.repeat_interleave(new, 1) for each in (t, mixed, video))
        noise = self._normal(clean.shape)
        if not layout.past:
            coupled = couple(noise, places, self.size)
            noise = torch.where((t > COUPLED_FROM)[:, :, None, None, None], coupled, noise)
        start = clean
        if new < CHUNK:
            mean, std = self._raw
            raw = video & (self._uniform((count, 1)) < RAW_PART)
            start = torch.where(raw[:, :, None, None, None], clean * std + mean, clean)
        mixed = mixed[:, :, None, None, None]
        return (1 - mixed) * start + mixed * noise, t, clean

    def _take_gradients(
        self,
        layout: Layout,
        context: Tensor,
        x_t: Tensor,
        t: Tensor,
        target: Tensor,
        embedding: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mean weighted error of x_0, and its plain mean at timestep 1000."""
        p = self.weights()
        past = context.shape[1]
        times = torch.cat([torch.zeros_like(t[:, :1]).expand(-1, past), t], 1)
        bias = self._bias(layout.past, layout.new, layout.copies)
        flow = forward(p, CONFIG, torch.cat([context, x_t], 1), times, embedding, (cos, sin), bias)[:, past:]
        sigma = (t / 1000)[:, :, None, None, None]
        error = (x_t - sigma * flow - target).square()
        loss = (error / (sigma**2 + 0.1)).mean()
        self.optimiser.take(loss)
        first = (t == STEPS[0]).float()
        by_frame = error.detach().mean(dim=(2, 3, 4))
        return loss.detach(), (by_frame * first).sum() / first.sum().clamp(min=1)

    def _rolled(
        self, layout: Layout, films: Tensor, context: Tensor, take: Sequence[int], positions: Sequence[int]
    ) -> Tensor:
        """The context with its last blocks as a stream makes them, in the product's steps."""
        blocks = layout.past[-layout.rolled :]
        noises: list[Tensor] = []
        embeddings: list[Tensor] = []
        tables: list[Tensor] = []
        done = sum(layout.past) - sum(blocks)
        for block in blocks:
            shape = (len(context), block, *context.shape[2:])
            noise = [self._normal(shape) for _ in STEPS]
            if not done:
                noise[0] = couple(noise[0], self.bank.places[films], self.size)
            noises.append(torch.stack(noise))
            embeddings.append(self.bank.embeddings[films, take[done] // CHUNK].float())
            done += block
            tables += self._tables(positions[:done])
        return self._rollouts[layout](context, *noises, *embeddings, *tables)[0]

    @torch.no_grad()
    def _roll(self, layout: Layout, context: Tensor, *rest: Tensor) -> tuple[Tensor]:
        """rest: of each block the noise of every step, its embedding, and tables of all frames up to it."""
        n = layout.rolled
        noises, embeddings, tables = rest[:n], rest[n : 2 * n], rest[2 * n :]
        p = self.weights()
        done = sum(layout.past) - sum(layout.past[-n:])
        known = context[:, :done]
        for i, block in enumerate(layout.past[-n:]):
            bias = self._bias(layout.past[: len(layout.past) - n + i], block, 1)
            x_0 = torch.zeros_like(noises[i][0])
            for noise, timestep in zip(noises[i], STEPS, strict=True):
                sigma = timestep / 1000
                x_t = (1 - sigma) * x_0 + sigma * noise
                t = torch.zeros(len(x_t), done + block, device=x_t.device)
                t[:, done:] = timestep
                flow = forward(
                    p,
                    CONFIG,
                    torch.cat([known, x_t], 1),
                    t,
                    embeddings[i],
                    (tables[2 * i], tables[2 * i + 1]),
                    bias,
                )
                x_0 = x_t - sigma * flow[:, done:]
            known = torch.cat([known, x_0], 1)
            done += block
        return (known,)

    def _bias(self, past: tuple[int, ...], new: int, copies: int) -> Tensor | None:
        """By token; None where everything sees everything."""
        if not past and copies == 1:
            return None
        key = (past, new, copies)
        if key not in self._biases:
            tokens = (self.size[0] // 16) * (self.size[1] // 16)
            bias = block_bias(past, new, copies).to(self.device, torch.bfloat16)
            self._biases[key] = bias.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        return self._biases[key]

    def _tables(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows, columns = self.size[0] // 16, self.size[1] // 16
        cos, sin = rope_tables(positions, rows, columns, CONFIG.head_dim)
        return cos.to(self.device), sin.to(self.device)

    def _random(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)
