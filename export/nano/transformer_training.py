"""Training of the causal transformer on films, so that the product's few steps need no distillation.

A sample is [clean context of 0 to 3 chunks | noisy copies of the next chunk at different timesteps]; one
forward with a mask by chunks computes all of it, with the same keys and values as the product's clean passes.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graphs.text_encoder import TextEncoder
from export.graphs.transformer import TextKV, Transformer, TransformerConfig
from export.nano.films import CHUNK, Film
from export.nano.optim import MuonAdam
from export.nano.text import TEXT_LEN, PromptBatch, say
from streaming.blending import blend
from streaming.tokens import patchify, rope_tables, time_sinusoid, unpatchify

CONFIG: Final = TransformerConfig(
    dim=128, ffn_dim=512, num_heads=4, num_layers=4, text_dim=128, text_len=TEXT_LEN
)
STEPS: Final = (1000.0, 750.0, 500.0, 250.0)  # the product's, all of which must work in one call
COUPLED_FROM: Final = 900.0  # timestep above which the noise says where the shape is
EMA: Final = 0.995

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
        angle = 2 * math.pi * (torch.arange(tokens).repeat_interleave(2) + 0.5) / tokens
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
    positions: Sequence[int],
    mask: Tensor | None,
) -> Tensor:
    """The flow of `Transformer` and `TextKV` together, in bfloat16, for training.

    x          [B, F, 16, h, w]
    timestep   [B, F]
    embedding  [B, text_len, text_dim]
    positions  of the F latent frames
    mask       [F, F], 0 or -inf by frame, or None
    returns    float32 [B, F, 16, h, w]
    """
    rows, columns = x.shape[3] // 2, x.shape[4] // 2
    tokens, heads, d = rows * columns, config.num_heads, config.head_dim
    B, frames = x.shape[:2]
    cos, sin = (
        t.bfloat16().repeat_interleave(2, 1).reshape(1, 1, -1, 1, d)
        for t in rope_tables(positions, rows, columns, d)
    )
    turn = _turn(d)
    bias = None
    if mask is not None:
        bias = mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1).bfloat16()
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
        logits = q @ k.transpose(2, 3)
        y = torch.softmax(logits if bias is None else logits + bias, -1) @ v
        y = _linear(p, a + "o", y.transpose(1, 2).flatten(2)).reshape(B, frames, tokens, -1)
        h = h + y * m[2]
        c = b + "cross_attn."
        y = F.layer_norm(h, h.shape[-1:]).flatten(1, 2) * p[b + "norm3.weight"] + p[b + "norm3.bias"]
        q = _norm(_linear(p, c + "q", y), p[c + "norm_q.weight"] * d**-0.5)
        k, v = _norm(_linear(p, c + "k", text), p[c + "norm_k.weight"]), _linear(p, c + "v", text)
        q, k, v = (t.reshape(B, -1, heads, d).transpose(1, 2) for t in (q, k, v))
        y = torch.softmax(q @ k.transpose(2, 3) + text_bias, -1) @ v
        h = h + _linear(p, c + "o", y.transpose(1, 2).flatten(2)).reshape(B, frames, tokens, -1)
        y = F.layer_norm(h, h.shape[-1:]) * (1 + m[4]) + m[3]
        y = _linear(p, b + "ffn.2", F.gelu(_linear(p, b + "ffn.0", y), approximate="tanh"))
        h = h + y * m[5]
    shift, scale = (p["head.modulation"].reshape(1, 1, 2, 1, -1) + e.reshape(B, frames, 1, 1, -1)).unbind(2)
    y = _linear(p, "head.head", F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift).flatten(1, 2)
    return unpatchify(y.float(), x.shape[3], x.shape[4])


def _linear(p: Params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[name + ".weight_t"].t(), p[name + ".bias"])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * weight


def _turn(d: int) -> Tensor:
    """x @ turn = (-x1, x0, -x3, x2, ...)."""
    turn = torch.zeros(d, d, dtype=torch.bfloat16)
    even = torch.arange(0, d, 2)
    turn[even, even + 1], turn[even + 1, even] = 1.0, -1.0
    return turn


def _text(p: Params, embedding: Tensor, config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Context rows, and the bias of their keys: equal rows at the end of all prompts are one, weighted."""
    used = int((embedding != 0).any(2).any(0).sum())
    rest = config.text_len - used
    rows = embedding[:, : used + 1] if rest else embedding
    bias = torch.zeros(rows.shape[1])
    if rest:
        bias[-1] = math.log(rest)
    text = F.gelu(_linear(p, "text_embedding.0", rows.bfloat16()), approximate="tanh")
    return _linear(p, "text_embedding.2", text), bias.bfloat16()


@dataclass(frozen=True, slots=True)
class Layout:
    """One kind of training batch: clean context chunks, noisy copies of the next chunk, samples."""

    context: int
    copies: int
    batch: int


LAYOUTS: Final = (Layout(0, 1, 8), Layout(1, 2, 6), Layout(2, 2, 4), Layout(3, 2, 3))
# How often each is drawn: first mostly first chunks, which are the hardest; then what goes on from them.
WEIGHTS: Final = ((0.65, 0.2, 0.1, 0.05), (0.3, 0.38, 0.18, 0.14))
FIRST_PART: Final = 0.45  # of the steps


def chunk_mask(context: int, copies: int) -> Tensor | None:
    """[F, F]: a context chunk sees itself and older ones, a copy sees all context and itself."""
    if context == 0 and copies == 1:
        return None
    n = context + copies
    seen = torch.eye(n, dtype=torch.bool)
    seen[:, :context] |= torch.tril(torch.ones(n, context, dtype=torch.bool))
    bias = torch.zeros(n, n).masked_fill(~seen, -1e4)
    return bias.repeat_interleave(CHUNK, 0).repeat_interleave(CHUNK, 1)


class TransformerTraining:
    """State of the training; `state_dict` is all that a resume needs."""

    def __init__(
        self,
        encoder: TextEncoder,
        films: Sequence[Film],
        latents: Tensor,
        size: tuple[int, int],
        seed: int,
        steps: int,
        peak: float = 2e-3,
    ) -> None:
        self.encoder, self.films, self.latents, self.size = encoder, films, latents, size
        self.steps, self.done, self.peak = steps, 0, peak
        self.modules = new_transformer(seed)
        self.params = {n: q for module in self.modules for n, q in module.named_parameters()}
        self.average = {n: q.detach().clone() for n, q in self.params.items()}
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self._prompts = PromptBatch()
        self._starts = [i for i, film in enumerate(films) if film.start]
        self._middles = [i for i, film in enumerate(films) if not film.start]
        matrices = [
            q
            for n, q in self.params.items()
            if q.ndim == 2 and n.split(".")[0] in ("blocks", "text_embedding")
        ]
        chosen = {id(q) for q in matrices}
        others = [q for q in self.params.values() if id(q) not in chosen]
        self.optimiser = MuonAdam(matrices, others, decay=0.01, adam_factor=0.5)

    def rate(self) -> float:
        warm = min(1.0, (self.done + 1) / 50)
        return self.peak * warm * min(1.0, max(0.02, 3 * (1 - self.done / self.steps)))

    def step(self) -> dict[str, float]:
        late = self.done >= FIRST_PART * self.steps
        layout = self.rng.choices(LAYOUTS, WEIGHTS[late])[0]
        half = {n: q.bfloat16() for n, q in self.params.items()}
        loss, first = self.loss(half, layout)
        loss.backward()  # type: ignore[no-untyped-call]
        for q in self.params.values():
            if q.grad is None:
                q.grad = torch.zeros_like(q)
        self.optimiser.step(self.rate())
        self.done += 1
        keep = min(EMA, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for n, q in self.params.items():
                self.average[n].lerp_(q, 1 - keep)
        return {f"context {layout.context}": float(loss.detach())} | first

    def loss(self, p: Params, layout: Layout) -> tuple[Tensor, dict[str, float]]:
        """Weighted error of x_0, and its plain mean at timestep 1000 without context as "first"."""
        context, target, embedding, positions, centre = self.sample(layout)
        noisy = torch.cat([target] * layout.copies, 1)
        t = torch.tensor(
            [[self._timestep(layout) for _ in range(layout.copies)] for _ in range(layout.batch)]
        )
        t = t.repeat_interleave(CHUNK, 1)
        noise = torch.randn(noisy.shape, generator=self.generator)
        if layout.context == 0:
            coupled = couple(noise, centre, self.size)
            noise = torch.where((t > COUPLED_FROM)[:, :, None, None, None], coupled, noise)
        sigma = (t / 1000)[:, :, None, None, None]
        x_t = (1 - sigma) * noisy + sigma * noise
        if layout.context:
            context = self._worn(p, context, embedding, positions, layout)
        x = torch.cat([context, x_t], 1)
        times = torch.cat([torch.zeros(layout.batch, CHUNK * layout.context), t], 1)
        mask = chunk_mask(layout.context, layout.copies)
        flow = forward(p, CONFIG, x, times, embedding, positions, mask)[:, CHUNK * layout.context :]
        error = (sigma * (flow - (noise - noisy))).square()
        loss = (error / (sigma**2 + 0.1)).mean()
        chosen = error.detach()[t == 1000.0]
        return loss, {"first": float(chosen.mean())} if layout.context == 0 and len(chosen) else {}

    def _timestep(self, layout: Layout) -> float:
        if self.rng.random() < 0.75:
            return self.rng.choices(STEPS, (4, 1, 1, 1) if layout.context == 0 else (2, 1, 1, 1))[0]
        u = self.rng.random()
        return 1000 * 5 * u / (1 + 4 * u)

    def _worn(
        self, p: Params, context: Tensor, embedding: Tensor, positions: Sequence[int], layout: Layout
    ) -> Tensor:
        """Context as a stream has it: not quite clean, in part the model's own work."""
        shape = (len(context), 1, 1, 1, 1)
        strength = 0.15 * torch.rand(shape, generator=self.generator)
        strength *= torch.rand(shape, generator=self.generator) < 0.7
        context = context + strength * torch.randn(context.shape, generator=self.generator)
        if self.done < 300 or self.rng.random() > 0.3:
            return context
        sigma = self.rng.choice((0.25, 0.5, 0.75))
        length = CHUNK * layout.context
        clean, last = context[:, : length - CHUNK], context[:, length - CHUNK :]
        x_t = (1 - sigma) * last + sigma * torch.randn(last.shape, generator=self.generator)
        t = torch.zeros(len(context), length)
        t[:, length - CHUNK :] = 1000 * sigma
        with torch.no_grad():
            mask = chunk_mask(layout.context - 1, 1)
            flow = forward(p, CONFIG, torch.cat([clean, x_t], 1), t, embedding, positions[:length], mask)
        return torch.cat([clean, x_t - sigma * flow[:, length - CHUNK :]], 1)

    def sample(self, layout: Layout) -> tuple[Tensor, Tensor, Tensor, list[int], Tensor]:
        """context [B, F, ...], target [B, CHUNK, ...], embedding, positions of all frames, centres [B, 2]."""
        n = layout.context
        from_start = n == 0 or (n < 3 and self.rng.random() < 0.5)
        chosen = [self.rng.choice(self._starts if from_start else self._middles) for _ in range(layout.batch)]
        films = [self.films[i] for i in chosen]
        latents = self.latents[chosen].float()
        sink = not from_start and n >= 2  # of another film: only the last chunks say where things are
        recent = n - sink
        last = recent if from_start or self.rng.random() < 0.5 else 2  # chunk that is to come
        last = max(last, recent)
        context = latents[:, CHUNK * (last - recent) : CHUNK * last]
        target = latents[:, CHUNK * last : CHUNK * (last + 1)]
        offset = 0
        if not from_start:
            far = self.rng.choice((30, 300, 1000))
            offset = CHUNK * self.rng.randrange(1, (far - CHUNK * 4) // CHUNK)
        positions = [offset + i for i in range(CHUNK * recent)]
        if sink:
            others = [self.rng.choice(self._starts) for _ in range(layout.batch)]
            context = torch.cat([self.latents[others][:, :CHUNK].float(), context], 1)
            positions = [*range(CHUNK), *positions]
        after = [offset + CHUNK * recent + i for i in range(CHUNK)]
        positions += after * layout.copies
        centre = torch.tensor([[film.begin.x, film.begin.y] for film in films])
        return context, target, self.embed(films, last), positions, centre

    @torch.no_grad()
    def embed(self, films: Sequence[Film], chunk: int) -> Tensor:
        """[B, text_len, text_dim]: what the chunk's sentences say, blended where the film is."""
        texts = [say(film.scenes[chunk], self.rng) for film in films]
        mixed = [i for i, film in enumerate(films) if film.mix]
        for i in mixed:
            texts[i] = films[i].scenes[chunk].prompt
        ids, mask = self._prompts(texts + [films[i].others[chunk].prompt for i in mixed])
        embedding = self.encoder(ids, mask)
        result: Tensor = embedding[: len(films)].clone()
        for i, other in zip(mixed, embedding[len(films) :], strict=True):
            mix = films[i].mix
            result[i] = blend([embedding[i : i + 1], other[None]], [1 - mix, mix], "linear")[0]
        return result

    def state_dict(self) -> dict[str, Any]:
        return {
            "params": {n: q.detach() for n, q in self.params.items()},
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "rng": self.rng.getstate(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for n, q in self.params.items():
                q.copy_(state["params"][n])
                self.average[n].copy_(state["average"][n])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]
        self.rng.setstate(state["rng"])
        self.generator.set_state(state["generator"])
