"""Training of the small Wan VAE: random flat shapes, in the product's own graphs.

What made it learn at all (the defaults of PyTorch do not): a start that already passes a blurred picture
through, with everything else in residual branches that begin at zero; Muon; and long clips, without which
colours run away from the fourth latent frame on.
"""

import math
import random
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import LatentScale, decode, encode
from export.graphs.vae_layers import (
    AttentionBlock,
    ChannelNorm,
    Downsample,
    ResidualBlock,
    Upsample,
)
from export.nano.optim import MuonAdam, warm_cosine
from export.nano.world import PALETTE, SHAPES, SPEED, draw

CONFIG: Final = VaeConfig(dim=8)
TORUS: Final = (64, 64)  # pixels; crops of it are what training sees
OFFSET, CONSTANT, GAIN = 2.0, 6.0, 2.0  # of the colour channels and of the constant one, see `pass_through`
IDENTITY: Final = LatentScale([0.0] * 16, [1.0] * 16)
PASSED: Final = 4  # channels: red, green, blue, constant


class FastNorm(ChannelNorm):
    """The same norm for channels that lie next to each other in memory: three times as fast in training."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Normalise.apply(x)  # type: ignore[no-untyped-call]
        scaled: Tensor = y * (self.gamma * x.shape[1] ** 0.5).to(x.dtype)
        return scaled


class _Normalise(torch.autograd.Function):
    """x / |x| over dim 1, with the sums as matrix products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = torch.rsqrt(_sum_channels(x * x) + 1e-8)
        y: Tensor = x * length
        ctx.save_for_backward(y, length)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, length = ctx.saved_tensors
        result: Tensor = (gradient - y * _sum_channels(y * gradient)) * length
        return result


def _sum_channels(x: Tensor) -> Tensor:
    """Sum over dim 1, repeated for every channel."""
    last = x.movedim(1, -1)
    ones = torch.ones(last.shape[-1], last.shape[-1], dtype=x.dtype, device=x.device)
    return (last @ ones).movedim(-1, 1)


def new_vae(seed: int) -> WanVae:
    """A VAE that begins as a blur: see `pass_through`."""
    torch.manual_seed(seed)
    vae = WanVae(CONFIG)
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Conv3d, nn.Conv2d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
            if name in ("encoder.conv1", "decoder.conv1"):
                nn.init.normal_(module.bias)  # norms remove brightness; a constant channel keeps it
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            last: Any = module.residual[6]
            nn.init.zeros_(last.weight)
        elif isinstance(module, AttentionBlock):
            nn.init.zeros_(module.proj.weight)
    with torch.no_grad():
        pass_through(vae)
    return vae


def pass_through(vae: Any) -> None:
    """Let the first three channels carry red, green and blue, and the fourth a constant.

    Down: the mean of 2 x 2 pixels and of 2 frames. Up: linear interpolation, frames repeated. The offset
    keeps colours where SiLU is nearly linear, and the constant is large, so that the norms change little.
    """
    for module in vae.modules():
        if isinstance(module, ResidualBlock) and isinstance(module.shortcut, nn.Conv3d):
            _pass(module.shortcut.weight, torch.ones(1, 1, 1))
        elif isinstance(module, (Downsample, Upsample)):
            _pass_resampled(module)
    stem, end = vae.encoder.conv1, vae.encoder.head[2]
    first, last = vae.decoder.conv1, vae.decoder.head[2]
    centre = torch.zeros(3, 3, 3)
    centre[2, 1, 1] = 1.0  # of the newest frame
    for layer in (stem, end, first, last):
        layer.weight[: min(PASSED, len(layer.weight))] = 0.0
        for i in range(3):
            layer.weight[i, i] = centre
            layer.bias[i] = OFFSET
    stem.bias[3] = first.bias[3] = CONSTANT
    nn.init.normal_(end.weight[3], std=end.weight[3].numel() ** -0.5)  # latents have no constant channel
    for mixer in (vae.conv1, vae.conv2):
        mixer.weight.copy_(torch.eye(len(mixer.weight)).reshape(mixer.weight.shape))
    calibrate(vae)


def _pass(weight: Tensor, kernel: Tensor, first_out: int = 0) -> None:
    """Channel by channel through one kernel, nothing else into these channels."""
    for i in range(PASSED):
        weight[first_out + i] = 0.0
        weight[first_out + i, i] = kernel


def _pass_resampled(module: Any) -> None:
    down = isinstance(module, Downsample)
    corner, tent = torch.zeros(3, 3), torch.tensor([0.25, 0.5, 0.25])
    corner[:2, :2] = 0.25
    _pass(module.resample[1].weight, corner if down else torch.outer(tent, tent))
    if module.time_conv is not None:
        kernel = torch.tensor([0.0, 0.5, 0.5] if down else [0.0, 0.0, 1.0]).reshape(3, 1, 1)
        for half in range(1 if down else 2):
            _pass(module.time_conv.weight, kernel, half * module.time_conv.in_channels)


def calibrate(vae: Any, clips: int = 24) -> None:
    """Scale what leaves the two heads: latents of colours to mean 0 and std 1, pixels to their colours."""
    rng = random.Random(0)
    still = ClipKind(1, 5, 32)
    x = torch.cat([random_clips(still, rng)[0] for _ in range(clips)])
    end, first, last = vae.encoder.head[2], vae.decoder.conv1, vae.decoder.head[2]
    for half, layer in ((vae.encoder, end), (vae.decoder, last)):
        norm = half.head[0]
        assert isinstance(norm, ChannelNorm)
        norm.gamma[:3] *= GAIN * (8 / len(norm.gamma)) ** 0.5
        z = encode(vae, x)[1]
        y = z if half is vae.encoder else decode_raw(vae, z)
        for i in range(3):
            values, wanted = y[:, i].flatten(), x[:, i].flatten()
            if half is vae.encoder:
                gain, shift = 1 / values.std(), -values.mean() / values.std()
                first.weight[i] *= wanted.std()
                first.bias[i] = OFFSET + wanted.mean()
            else:
                centred = values - values.mean()
                gain = (centred * wanted).mean() / centred.square().mean()
                shift = wanted.mean() - gain * values.mean()
            layer.weight[i] *= gain
            layer.bias[i] = layer.bias[i] * gain + shift


def decode_raw(vae: WanVae, mu: Tensor) -> Tensor:
    """Decode latents that are not normalised: [B, 16, F, h, w] -> [B, 3, T, H, W], not clamped."""
    scale, vae.scale = vae.scale, IDENTITY
    try:
        return decode(vae, mu, clamp=False)[0]
    finally:
        vae.scale = scale


def training_form(vae: WanVae) -> WanVae:
    """Faster layers on the same parameters."""
    for module in vae.modules():
        if isinstance(module, ChannelNorm):
            module.__class__ = FastNorm
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return vae


def product_form(vae: WanVae) -> WanVae:
    """Undo `training_form`."""
    for module in vae.modules():
        if isinstance(module, FastNorm):
            module.__class__ = ChannelNorm  # type: ignore[assignment]
    return vae


@dataclass(frozen=True, slots=True)
class ClipKind:
    """Sizes of a batch of clips, in pixels and pixel frames."""

    clips: int
    frames: int
    crop: int


# The same work per step; long clips are needed for the steady state of the causal caches.
KINDS: Final = (
    ClipKind(4, 5, 48),
    ClipKind(3, 9, 40),
    ClipKind(3, 13, 32),
    ClipKind(2, 25, 32),
    ClipKind(2, 37, 24),
)


def random_clips(kind: ClipKind, rng: random.Random) -> tuple[Tensor, bool]:
    """Clips [B, 3, T, crop, crop] in [-1, 1], and whether they stand still."""
    frozen = rng.random() < 0.25
    clips = [_random_clip(kind, rng, frozen) for _ in range(kind.clips)]
    return torch.stack(clips).transpose(1, 2), frozen


def _random_clip(kind: ClipKind, rng: random.Random, frozen: bool) -> Tensor:
    cut = rng.choice((1, 5, 9)) if rng.random() < 0.15 and not frozen else kind.frames
    parts = [
        _random_motion(n, kind.crop, rng, frozen) for n in (min(cut, kind.frames), kind.frames - cut) if n > 0
    ]
    return torch.cat(parts)


def _random_motion(frames: int, crop: int, rng: random.Random, frozen: bool) -> Tensor:
    """[T, 3, crop, crop]"""
    fast = (rng.uniform(-4, 4), rng.uniform(-4, 4))
    steady = rng.choice(((SPEED, 0.0), (-SPEED, 0.0), (0.0, SPEED), (0.0, -SPEED), (0.0, 0.0)))
    vx, vy = (0.0, 0.0) if frozen else steady if rng.random() < 0.7 else fast
    x, y = rng.uniform(0, TORUS[1]), rng.uniform(0, TORUS[0])
    centre = torch.tensor([[x + vx * k, y + vy * k] for k in range(frames)])
    growth = 0.0 if frozen or rng.random() < 0.7 else 0.35
    phase = rng.uniform(0, 2 * math.pi)
    base = rng.uniform(9, 26)
    radius = torch.tensor([base * (1 + growth * math.sin(phase + k * math.pi / 16)) for k in range(frames)])
    colours = [_random_colour(rng).expand(frames, 3) for _ in range(2)]
    names = [rng.choice(SHAPES)] * frames
    return draw(names, centre, radius, colours[0], colours[1], (crop, crop), TORUS)


def _random_colour(rng: random.Random) -> Tensor:
    """[3] in [-1, 1]: of the palette, near it, or any."""
    chosen = torch.tensor(rng.choice(list(PALETTE.values()))) / 127.5 - 1
    kind = rng.random()
    if kind < 0.5:
        return chosen
    jitter = torch.tensor([rng.uniform(-1, 1) for _ in range(3)])
    return (chosen + 0.2 * jitter).clamp(-1, 1) if kind < 0.7 else jitter


class VaeTraining:
    """State of the training; `state_dict` is all that a resume needs."""

    def __init__(self, seed: int, steps: int, peak: float = 3e-3) -> None:
        self.vae = training_form(new_vae(seed))
        self.steps, self.peak, self.done = steps, peak, 0
        self.rng = random.Random(seed)
        last = self.vae.decoder.head[2].weight
        kernels = [p for p in self.vae.parameters() if p.ndim >= 4 and p.shape[1] > 1 and p is not last]
        chosen = {id(p) for p in kernels}
        others = [p for p in self.vae.parameters() if id(p) not in chosen]
        self.optimiser = MuonAdam(kernels, others)

    def step(self) -> dict[str, float]:
        """One step. Returns the mean squared error of pixels, and the latents' mean square."""
        clips, frozen = random_clips(self.rng.choice(KINDS), self.rng)
        with torch.autocast("cpu", torch.bfloat16):
            x = clips.bfloat16().contiguous(memory_format=torch.channels_last_3d)
            _, z, _ = encode(self.vae, x)
            noise = 0.1 * min(1.0, self.done / 300) * z.detach().float().std()  # the decoder must forgive
            y = decode_raw(self.vae, z + noise.to(z.dtype) * torch.randn_like(z))
        error = y.float() - clips
        mse = error.square().mean()
        loss = mse + error.abs().mean() + 1e-3 * z.float().square().mean()
        if frozen and z.shape[2] > 3:
            later = z[:, :, 2:].float()
            loss = loss + 0.1 * (later[:, :, 1:] - later[:, :, :-1]).square().mean()
            if later.shape[2] > 3:
                loss = loss + 0.1 * (later[:, :, 3:] - later[:, :, :-3]).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        rate = warm_cosine(self.done, self.steps, self.peak, 2e-5, warm_up=60)
        self.optimiser.step(rate)
        self.done += 1
        return {
            "mse": float(mse.detach()),
            "z": float(z.detach().float().square().mean()),
            "frames": clips.shape[2],
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "vae": self.vae.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "steps": self.steps,
            "rng": self.rng.getstate(),
            "torch_rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]
        self.rng.setstate(state["rng"])
        torch.set_rng_state(state["torch_rng"])


def psnr(mse: float) -> float:
    """dB, for pixels in [-1, 1]."""
    return 10 * math.log10(4 / max(mse, 1e-10))


@torch.no_grad()
def fold_statistics(vae: WanVae, mean: Tensor, std: Tensor) -> None:
    """Make the fixed normalisation of Wan2.1 right for this VAE, exactly: mean and std of its latents [16].

    The encoder's last 1x1 convolution then gives latents with the mean and std of Wan2.1, and the decoder's
    first one takes that back.
    """
    assert vae.scale is not None
    assert vae.conv1.bias is not None
    assert vae.conv2.bias is not None
    fixed_mean, fixed_std = vae.scale.mean.flatten(), vae.scale.std.flatten()
    gain = fixed_std / std
    n = len(gain)
    vae.conv1.weight[:n] *= gain.reshape(-1, 1, 1, 1, 1)
    vae.conv1.bias[:n] = (vae.conv1.bias[:n] - mean) * gain + fixed_mean
    shift = mean - fixed_mean / gain
    vae.conv2.bias += vae.conv2.weight.flatten(1) @ shift
    vae.conv2.weight /= gain.reshape(1, -1, 1, 1, 1)
