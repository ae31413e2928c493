"""Training of the small Wan VAE: random flat shapes, in the product's own graphs.

What made it learn at all (the defaults of PyTorch do not): a start that already passes a blurred picture
through, with everything else in residual branches that begin at zero; Muon; and long clips, without which
colours run away from the fourth latent frame on.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import decode, encode
from export.graphs.vae_layers import (
    AttentionBlock,
    CacheTape,
    CausalConv3d,
    ChannelNorm,
    Downsample,
    ResidualBlock,
    Upsample,
)
from export.nano.captured import Graphs
from export.nano.optim import MuonAdam, warm_cosine
from export.nano.world import CPU, PALETTE, SHAPES, SPEED, draw

CONFIG: Final = VaeConfig(dim=8)
LEAST_TORUS: Final = 64  # pixels; crops of it are what training sees
OFFSET, CONSTANT, GAIN = 2.0, 6.0, 2.0  # of the colour channels and of the constant one, see `pass_through`
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


class StackedConv3d(CausalConv3d):
    """The same convolution as one over height and width of frames stacked along the channels.

    On a GPU, 3-D convolutions of few channels are slow; on a CPU they are not.
    """

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:  # type: ignore[override]
        taps, stride = self.kernel_size[0], self.stride[0]
        x = tape.extend(x, self.context).transpose(1, 2)  # [B, T, C, h, w]
        frames = (x.shape[1] - taps) // stride + 1
        stacked = torch.cat([x[:, i : i + stride * (frames - 1) + 1 : stride] for i in range(taps)], 2)
        kernel = self.weight.transpose(1, 2).flatten(1, 2)  # [out, taps * in, kh, kw], tap slowest
        flat = stacked.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        y = F.conv2d(flat, kernel, self.bias, padding=self.padding[1:])
        return y.reshape(-1, frames, *y.shape[1:]).transpose(1, 2)


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
    x = torch.cat([random_clips(ClipKind(5, 32), 1, rng)[0] for _ in range(clips)])
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
    scale, vae.scale = vae.scale, None
    try:
        return decode(vae, mu, clamp=False)[0]
    finally:
        vae.scale = scale


def training_form(vae: WanVae, stacked: bool = False) -> WanVae:
    """Faster layers on the same parameters. stacked: for a GPU, see `StackedConv3d`."""
    for module in vae.modules():
        if isinstance(module, ChannelNorm):
            module.__class__ = FastNorm
        elif isinstance(module, CausalConv3d) and stacked:
            module.__class__ = StackedConv3d
    for parameter in vae.parameters():
        if parameter.ndim == 5 and not stacked:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return vae


def product_form(vae: WanVae) -> WanVae:
    """Undo `training_form`."""
    for module in vae.modules():
        if isinstance(module, FastNorm):
            module.__class__ = ChannelNorm  # type: ignore[assignment]
        elif isinstance(module, StackedConv3d):
            module.__class__ = CausalConv3d  # type: ignore[assignment]
    return vae


@dataclass(frozen=True, slots=True)
class ClipKind:
    """Length in pixel frames, and height and width in pixels, of the clips of a batch."""

    frames: int
    crop: int

    def clips(self, pixels: int) -> int:
        """How many clips have about so many pixels."""
        return max(1, round(pixels / (self.frames * self.crop**2)))


# Long clips are needed for the steady state of the causal caches.
SMALL_CLIPS: Final = (ClipKind(5, 48), ClipKind(9, 40), ClipKind(13, 32), ClipKind(25, 32), ClipKind(37, 24))
LARGE_CLIPS: Final = (ClipKind(5, 96), ClipKind(13, 64), ClipKind(25, 64), ClipKind(41, 64), ClipKind(41, 96))
SMALL_BATCH: Final = 45_000  # pixels
LARGE_BATCH: Final = 1_000_000


def random_clips(
    kind: ClipKind, count: int, rng: random.Random, device: torch.device = CPU
) -> tuple[Tensor, bool]:
    """Clips [B, 3, T, crop, crop] in [-1, 1], and whether they stand still."""
    frozen, torus = rng.random() < 0.25, max(LEAST_TORUS, kind.crop)
    motions = [_random_motion(rng, frozen, torus) for _ in range(2 * count)]
    # A cut: another motion, with everything that belongs to it, from this frame on.
    cuts = [
        rng.choice((1, 5, 9)) if rng.random() < 0.15 and not frozen else kind.frames for _ in range(count)
    ]
    frame = torch.arange(kind.frames)
    chosen = torch.arange(count)[:, None] + count * (frame >= torch.tensor(cuts)[:, None])
    values = torch.tensor(motions)[chosen.flatten()].to(device)
    k = frame.repeat(count).to(device).float()
    x, y, vx, vy, base, growth, phase = values[:, :7].unbind(1)
    pictures = draw(
        values[:, 13].long(),
        torch.stack([x + vx * k, y + vy * k], 1),
        base * (1 + growth * torch.sin(phase + k * math.pi / 16)),
        values[:, 7:10],
        values[:, 10:13],
        (kind.crop, kind.crop),
        (torus, torus),
    )
    return pictures.reshape(count, kind.frames, *pictures.shape[1:]).transpose(1, 2), frozen


def _random_motion(rng: random.Random, frozen: bool, torus: int) -> tuple[float, ...]:
    """x, y, velocity in x and y, radius, how much it pulses, phase; two colours; form."""
    fast = (rng.uniform(-4, 4), rng.uniform(-4, 4))
    steady = rng.choice(((SPEED, 0.0), (-SPEED, 0.0), (0.0, SPEED), (0.0, -SPEED), (0.0, 0.0)))
    velocity = (0.0, 0.0) if frozen else steady if rng.random() < 0.7 else fast
    growth = 0.0 if frozen or rng.random() < 0.7 else 0.35
    place = rng.uniform(0, torus), rng.uniform(0, torus)
    size = rng.uniform(9, 27), growth, rng.uniform(0, 2 * math.pi)
    colours = (*_random_colour(rng), *_random_colour(rng))
    return (*place, *velocity, *size, *colours, float(rng.randrange(len(SHAPES))))


def _random_colour(rng: random.Random) -> list[float]:
    """3 numbers in [-1, 1]: of the palette, near it, or any."""
    chosen = [value / 127.5 - 1 for value in rng.choice(list(PALETTE.values()))]
    kind = rng.random()
    if kind < 0.5:
        return chosen
    jitter = [rng.uniform(-1, 1) for _ in range(3)]
    if kind >= 0.7:
        return jitter
    return [min(1.0, max(-1.0, c + 0.2 * j)) for c, j in zip(chosen, jitter, strict=True)]


class VaeTraining:
    """State of the training; `state_dict` is all that a resume needs.

    kinds, pixels  of a batch; small crops on a CPU
    """

    def __init__(
        self,
        seed: int,
        steps: int,
        peak: float = 3e-3,
        kinds: Sequence[ClipKind] = SMALL_CLIPS,
        pixels: int = SMALL_BATCH,
        device: torch.device = CPU,
    ) -> None:
        self.vae = training_form(new_vae(seed).to(device), stacked=device.type == "cuda")
        self.steps, self.peak, self.done = steps, peak, 0
        self.kinds, self.pixels, self.device = kinds, pixels, device
        self.rng = random.Random(seed)
        self.generator = torch.Generator(device).manual_seed(seed)
        last = self.vae.decoder.head[2].weight
        kernels = [p for p in self.vae.parameters() if p.ndim >= 4 and p.shape[1] > 1 and p is not last]
        chosen = {id(p) for p in kernels}
        others = [p for p in self.vae.parameters() if id(p) not in chosen]
        self.optimiser = MuonAdam(kernels, others)
        graphs = Graphs()
        self._gradients = {kind: graphs.captured(self._take_gradients) for kind in kinds}

    def step(self) -> dict[str, Tensor]:
        """One step. Returns the mean squared error of pixels, and the latents' mean square."""
        kind = self.rng.choice(self.kinds)
        clips, frozen = random_clips(kind, kind.clips(self.pixels), self.rng, self.device)
        shape = (len(clips), self.vae.z_dim, (kind.frames - 1) // 4 + 1, kind.crop // 8, kind.crop // 8)
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        noise *= 0.1 * min(1.0, self.done / 300)
        still = torch.tensor(0.1 if frozen else 0.0, device=self.device)
        mse, power = self._gradients[kind](clips, noise, still)
        rate = warm_cosine(self.done, self.steps, self.peak, 2e-5, warm_up=60)
        self.optimiser.step(rate)
        self.done += 1
        return {"mse": mse.clone(), "z": power.clone(), f"mse of {kind.frames}": mse.clone()}

    def _take_gradients(self, clips: Tensor, noise: Tensor, still: Tensor) -> tuple[Tensor, Tensor]:
        """noise: added to the latents, which the decoder must forgive; still: weight of their constancy."""
        # Without its cache of cast weights, which a captured graph would find already made.
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            x = clips.bfloat16().contiguous(memory_format=torch.channels_last_3d)
            _, z, _ = encode(self.vae, x)
            picture = decode_raw(self.vae, z + (noise * z.detach().float().std()).to(z.dtype)).float()
        error = picture - clips
        mse, power = error.square().mean(), z.float().square().mean()
        loss = mse + error.abs().mean() + 1e-3 * power
        later = z[:, :, 2:].float()
        for apart in (1, 3):
            if later.shape[2] > apart:
                loss = loss + still * (later[:, :, apart:] - later[:, :, :-apart]).square().mean()
        self.optimiser.take(loss)
        return mse.detach(), power.detach()

    def state_dict(self) -> dict[str, Any]:
        return {
            "vae": self.vae.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "steps": self.steps,
            "rng": self.rng.getstate(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]
        self.rng.setstate(state["rng"])
        self.generator.set_state(state["generator"])


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
