"""Training of a VACE branch for the nano transformer, which stays as it is.

A sample is one chunk as the product denoises it: clean chunks before it are in the cache, without hints, and
the branch gets its context. Computed by the very modules that are exported, in float32.
"""

import random
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.checkpoints.checkpoints import load_weights, open_checkpoint
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vace import VaceConfig, VaceTextKV, VaceTransformer
from export.nano.averaged import AveragedTraining
from export.nano.films import CHUNK
from export.nano.optim import MuonAdam
from export.nano.package import checkpoint_state
from export.nano.transformer_training import CONFIG, STEPS
from streaming.conditioning.conditions import Conditions, VaceContext
from streaming.network.tokens import patchify
from streaming.network.transformer import ModelSizes, TransformerCall

VACE: Final = VaceConfig(layers=(0, 2))
PEAK: Final = 2.5e-3
WARM_UP: Final = 50  # steps
KEEP: Final = 0.99  # of the averaged parameters, by a step
SHARES: Final = {"first": 3.0, "later": 2.0, "reference": 3.0}
BATCHES: Final = {"first": 10, "later": 5, "reference": 10}
CONTINUED: Final = 0.7  # how often the chunk before shows the shape where it comes from

Bank = dict[str, dict[str, Tensor]]


class VaceTraining(AveragedTraining):
    """The training of a VACE branch beside a transformer that stays as it is."""

    def __init__(self, weights: Path, bank: Bank, seed: int, steps: int) -> None:
        """weights: file of the transformer that the branch is for."""
        torch.manual_seed(seed)
        self.bank, self.steps, self.done = bank, steps, 0
        self.transformer, self.text_kv = Transformer(CONFIG), TextKV(CONFIG)
        load_weights(open_checkpoint(weights), self.transformer, self.text_kv)
        self.branch, self.branch_text = new_branch(self.transformer, self.text_kv)
        modules = (self.branch, self.branch_text)
        self.params = {
            n: q for module in modules for n, q in module.named_parameters() if n.startswith("vace_")
        }
        for q in self.params.values():
            q.requires_grad_(True)
        self.average = {n: q.detach().clone() for n, q in self.params.items()}
        matrices = [q for n, q in self.params.items() if q.ndim == 2 and n.startswith("vace_blocks")]
        chosen = {id(q) for q in matrices}
        others = [q for q in self.params.values() if id(q) not in chosen]
        self.optimiser = MuonAdam(matrices, others, decay=0.01, adam_factor=0.5)
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def rate(self) -> float:
        warm = min(1.0, (self.done + 1) / WARM_UP)
        return PEAK * warm * min(1.0, max(0.02, 3 * (1 - self.done / self.steps)))

    def step(self) -> dict[str, Tensor]:
        kind = self.rng.choices(list(SHARES), list(SHARES.values()))[0]
        loss, at_first = self._loss(kind)
        self.optimiser.take(loss)
        self.advance(self.rate(), KEEP)
        return {kind: loss.detach(), f"{kind} first": at_first}

    def _loss(self, kind: str) -> tuple[Tensor, Tensor]:
        """Mean weighted error of x_0, and its plain mean at timestep 1000."""
        films = self.bank[kind]
        drawn = torch.randint(len(films["latents"]), (BATCHES[kind],), generator=self.generator)
        latents, context = films["latents"][drawn], films["context"][drawn]
        embedding = films["embeddings"][drawn]
        with torch.no_grad():
            cross = self.text_kv(embedding)
        branch_cross = self.branch_text(embedding)
        past, target = latents[:, :-CHUNK], latents[:, -CHUNK:]
        shifts = self._shifts()
        target, context = (torch.roll(each, shifts, dims=(3, 4)) for each in (target, context))
        if self.rng.random() < CONTINUED:
            past = torch.roll(past, shifts, dims=(3, 4))
        cached = self._cached(past, target, cross) if past.shape[1] else []
        t = self._timesteps(len(target), later=bool(cached))
        noise = torch.randn(target.shape, generator=self.generator)
        sigma = (t / 1000)[:, :, None, None, None]
        x_t = (1 - sigma) * target + sigma * noise
        start = sum(each[0].shape[2] for each in cached) // _tokens(target)
        flow = self._flow(x_t, t, start, cached, cross, _with_mask(context), branch_cross)
        error = (x_t - sigma * flow - target).square()
        first = (t == STEPS[0]).float()
        by_frame = error.detach().mean(dim=(2, 3, 4))
        loss = (error / (sigma**2 + 0.1)).mean()
        return loss, (by_frame * first).sum() / first.sum().clamp(min=1)

    def _shifts(self) -> tuple[int, int]:
        """The world is a torus: films are rolled by whole tokens, which makes many of few."""
        if self.rng.random() < 0.3:
            return 0, 0
        return 2 * self.rng.randrange(6), 2 * self.rng.randrange(6)

    def _timesteps(self, count: int, *, later: bool) -> Tensor:
        weights = torch.tensor([2.0 if later else 4.0, 1.0, 1.0, 1.0])
        listed = torch.tensor(STEPS)[torch.multinomial(weights, count, True, generator=self.generator)]
        u = torch.rand(count, generator=self.generator)
        chosen = torch.rand(count, generator=self.generator) < 0.75
        return torch.where(chosen, listed, 1000 * 5 * u / (1 + 4 * u))[:, None].expand(-1, CHUNK)

    @torch.no_grad()
    def _cached(self, past: Tensor, target: Tensor, cross: tuple[Tensor, ...]) -> list[list[Tensor]]:
        """Keys and values of one to three chunks before, by chunk and layer.

        The first one is the film's. Those after it show the scene at other places: control may move it so.
        """
        chunks = [
            past,
            *(torch.roll(target, self._shifts(), dims=(3, 4)) for _ in range(self.rng.randrange(3))),
        ]
        cached: list[list[Tensor]] = []
        for i, chunk in enumerate(chunks):
            strength = 0.15 * torch.rand((len(chunk), 1, 1, 1, 1), generator=self.generator)
            noisy = chunk + strength * torch.randn(chunk.shape, generator=self.generator)
            call = self._call(noisy, torch.zeros(chunk.shape[:2]), i * CHUNK, cached)
            tokens, rope = (call.tokens, call.time_sin, None), call.rope(call.positions)
            _, *new = self.transformer(tokens, rope, cross, tuple(call.kv))
            cached.append(new)
        return cached

    def _flow(
        self,
        x_t: Tensor,
        t: Tensor,
        start: int,
        cached: list[list[Tensor]],
        cross: tuple[Tensor, ...],
        context: Tensor,
        branch_cross: tuple[Tensor, ...],
    ) -> Tensor:
        call = self._call(x_t, t, start, cached, VaceContext(context, 1.0, branch_cross))
        tokens, rope = (call.tokens, call.time_sin, None), call.rope(call.positions)
        flow, *_ = self.branch(tokens, rope, cross, tuple(call.kv), None, call.vace)
        return call.flow(flow)

    def _call(
        self,
        x: Tensor,
        t: Tensor,
        start: int,
        cached: list[list[Tensor]],
        context: VaceContext | None = None,
    ) -> TransformerCall:
        shape = (2, len(x), 0, CONFIG.num_heads, CONFIG.head_dim)
        kv = [torch.cat(layer, dim=2) for layer in zip(*cached, strict=True)]
        return TransformerCall(
            sizes=ModelSizes(CONFIG.num_layers, CONFIG.num_heads, CONFIG.head_dim, CONFIG.freq_dim),
            latents=x,
            timestep=t,
            positions=range(start, start + x.shape[1]),
            conditions=Conditions(vace=context),
            kv=kv or [torch.zeros(shape)] * CONFIG.num_layers,
            key_bias=None,
        )


def new_branch(transformer: Transformer, text_kv: TextKV) -> tuple[VaceTransformer, VaceTextKV]:
    """The transformer with a branch that changes nothing yet; its blocks are copies of main blocks."""
    branch, branch_text = VaceTransformer(CONFIG, VACE), VaceTextKV(CONFIG, VACE)
    branch.load_state_dict(transformer.state_dict(), strict=False)
    branch_text.text_embedding.load_state_dict(text_kv.text_embedding.state_dict())
    for n, layer in enumerate(VACE.layers):
        block: Any = branch.vace_blocks[n]
        block.load_state_dict(transformer.blocks[layer].state_dict(), strict=False)
        branch_text.vace_blocks[n].load_state_dict(text_kv.blocks[layer].state_dict())
        nn.init.zeros_(block.after_proj.weight_t)
        nn.init.zeros_(block.after_proj.bias)
    first: Any = branch.vace_blocks[0]
    before = first.before_proj
    nn.init.eye_(before.weight_t)
    nn.init.xavier_uniform_(branch.vace_patch_embedding.weight_t)
    nn.init.zeros_(before.bias)
    if branch.vace_patch_embedding.bias is not None:
        nn.init.zeros_(branch.vace_patch_embedding.bias)
    for module in (branch, branch_text):
        module.requires_grad_(False)
    return branch, branch_text


def save_branch(training: dict[str, Any], path: Path) -> None:
    """Write the averaged parameters of a training's state as a VACE module's file, 16 bit."""
    with torch.device("meta"):
        modules = VaceTransformer(CONFIG, VACE), VaceTextKV(CONFIG, VACE)
    state = checkpoint_state(*modules, values=training["average"])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value for key, value in state.items() if key.startswith("vace_")}, path)


def _with_mask(context: Tensor) -> Tensor:
    """[B, F', 32, h, w] -> [B, F', 96, h, w]; a reference, one frame, has a mask of zeros."""
    B, frames, _, h, w = context.shape
    mask = context.new_full((B, frames, 64, h, w), float(frames > 1))
    return torch.cat([context, mask], dim=2)


def _tokens(latents: Tensor) -> int:
    """Of a latent frame."""
    return patchify(latents[:1, :1]).shape[1]
