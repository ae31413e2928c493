"""What the transformer engine wants as data: latents as tokens, rotary tables, time vectors (serving.md 8.2).

Angles are computed in float64 here, so that the graph needs no float64, and are handed over as float32. Token
order is frame, row, column; one latent frame is `(h / 2) * (w / 2)` tokens.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from streaming.checkpoints.config import PATCH, Patch

ROPE_BASE = 10_000.0


def patchify(latents: Tensor, patch: Patch = PATCH) -> Tensor:
    """[B, F, C, h, w] -> [B, tokens, C * patch], channel slowest: the order of a flattened Conv3d kernel."""
    B, F, C, h, w = latents.shape
    _, ph, pw = patch
    x = latents.reshape(B, F, C, h // ph, ph, w // pw, pw)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, -1, C * ph * pw)


def unpatchify(tokens: Tensor, h: int, w: int, patch: Patch = PATCH) -> Tensor:
    """[B, tokens, patch * C], channel fastest (not the order of `patchify`) -> [B, F, C, h, w]."""
    B, _, features = tokens.shape
    _, ph, pw = patch
    C = features // (ph * pw)
    x = tokens.reshape(B, -1, h // ph, w // pw, ph, pw, C)
    return x.permute(0, 1, 6, 2, 4, 3, 5).reshape(B, -1, C, h, w)


def rope_tables(
    frames: Sequence[int],
    rows: int,
    columns: int,
    head_dim: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """cos and sin of all tokens of these frames, float32 [len(frames) * rows * columns, head_dim / 2].

    frames   position of each latent frame, 0 .. 1023, in the order of the tokens; any order, with repeats
    rows     tokens per column of a frame, h / 2; columns w / 2

    A head's complex numbers are divided among frame, row and column; each axis has its own base (wan.md 2.5).
    The tables are shared with other callers: do not change them.
    """
    return _rope_tables(tuple(frames), rows, columns, head_dim, torch.device(device))


@lru_cache(maxsize=8)  # every step of a chunk asks for the same ones
def _rope_tables(
    frames: tuple[int, ...], rows: int, columns: int, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    spatial = head_dim // 6
    split = (head_dim // 2 - 2 * spatial, spatial, spatial)
    shape = (len(frames), rows, columns)
    parts = []
    for axis, (positions, count) in enumerate(zip((frames, range(rows), range(columns)), split, strict=True)):
        position = torch.tensor(positions, dtype=torch.float64)
        frequencies = ROPE_BASE ** -(torch.arange(count, dtype=torch.float64) / max(count, 1))
        along = [1, 1, 1, count]
        along[axis] = shape[axis]
        parts.append(torch.outer(position, frequencies).reshape(along).expand(*shape, count))
    angles = torch.cat(parts, dim=-1).reshape(-1, head_dim // 2)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def time_sinusoid(timestep: Tensor, freq_dim: int) -> Tensor:
    """Sinusoidal vector of each timestep, cosines first: [*] -> float32 [*, freq_dim].

    timestep is 0 .. 1000 and may be fractional; freq_dim is even.
    """
    half = freq_dim // 2
    frequencies = ROPE_BASE ** -(torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.double().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()
