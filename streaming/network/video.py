"""Pixels: resizing, number ranges, and how many frames go where. Torch-free, so that the gateway can use it.

Pictures are uint8 [T, H, W, 3] RGB. What the VAE takes and gives is [B, 3, T, H, W] in [-1, 1].
Source of all rules: wan.md 5.7 and pipelines-common.md 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streaming.errors import WanstreamError

Array = npt.NDArray[Any]
PIXEL_MAX = 255.0


@dataclass(frozen=True, slots=True)
class FrameGroups:
    """How an encoder cuts a stream of pixel frames into latent frames.

    The stream's first latent frame takes `first` pixel frames, each later one `later`. Frames beyond the last
    full group are dropped, or, with `repeat_last`, the last frame is repeated to fill the group. One call of
    an engine takes at most `at_once` later frames, None: any number.
    """

    first: int
    later: int
    repeat_last: bool = False
    at_once: int | None = None

    def cut(self, frames: int, start: bool) -> "FrameCut":
        """Cut one call's `frames` pixel frames; `start` is true in the first call of a stream."""
        first = self.first if start else 0
        needed = 1 if self.repeat_last else first or self.later
        if frames < needed:
            raise WanstreamError(f"{frames} video frames are too few to encode: send at least {needed}")
        groups, surplus = divmod(max(frames - first, 0), self.later)
        later = (groups + (self.repeat_last and surplus > 0)) * self.later
        return FrameCut(first, later, repeats=max(first + later - frames, 0))


@dataclass(frozen=True, slots=True)
class FrameCut:
    """What to encode of one call's frames."""

    first: int  # frames for the `first` graph
    later: int  # frames after them for the `next` graph
    repeats: int  # copies of the last frame to append before


def resample_indices(have: int, want: int) -> list[int]:
    """Which `want` of `have` frames to take: round(linspace(0, have - 1, want)), float32, half to even.

    The float32 steps from both ends are those of torch.linspace, whose rounding decides at the halves.
    """
    if have < 1 or want < 1:
        raise WanstreamError(f"cannot pick {want} of {have} video frames: both must be at least 1")
    last = np.float32(have - 1)
    step = last / np.float32(max(want - 1, 1))
    i = np.arange(want, dtype=np.float32)
    ascending, descending = step * i, last - step * i[::-1]
    position = np.where(i < want // 2, ascending, descending) if want > 1 else ascending
    return [int(index) for index in np.rint(position)]


def resize(pictures: Array, height: int, width: int) -> Array:
    """Bilinear, half-pixel centres, no antialiasing; the aspect ratio is not kept.

    pictures [T, h, w, C], any number type -> float32 [T, height, width, C] in the same range
    """
    y0, y1, wy = _neighbours(pictures.shape[1], height)
    x0, x1, wx = _neighbours(pictures.shape[2], width)
    wy, wx = wy[:, None, None], wx[:, None]
    resized = np.empty((len(pictures), height, width, pictures.shape[3]), np.float32)
    for picture, result in zip(pictures, resized, strict=True):  # one by one: twelve at once leave the cache
        rows = picture[y0] * (1 - wy) + picture[y1] * wy
        result[:] = rows[:, x0] * (1 - wx) + rows[:, x1] * wx
    return resized


def _neighbours(size: int, new_size: int) -> tuple[Array, Array, Array]:
    """For each new pixel: the two old pixels around its centre, and the weight of the second."""
    ratio = np.float32(size / new_size)
    centre = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5)
    centre = np.maximum(centre, np.float32(0))
    before = np.minimum(centre.astype(np.int64), size - 1)
    after = np.minimum(before + 1, size - 1)
    return before, after, np.asarray(centre - before, dtype=np.float32)


def to_model(pictures: Sequence[Array], height: int, width: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """Pictures of any sizes to one VAE input.

    pictures: each uint8 [T_i, h_i, w_i, 3] -> [1, 3, sum of T_i, height, width] in [-1, 1], of the working
    type `dtype`, in which the range conversion is computed, as in the reference.
    """
    fitted = [p if p.shape[1:3] == (height, width) else resize(p, height, width) for p in pictures]
    clip = np.concatenate([p.astype(dtype) for p in fitted]).transpose(3, 0, 1, 2)[None]
    full, two, one = np.array([PIXEL_MAX, 2, 1]).astype(dtype)
    return np.ascontiguousarray(clip / full * two - one)


def input_clip(pictures: Array, height: int, width: int, frames: int) -> Array:
    """A chunk's input pictures as the VAE and the noise controller take them.

    pictures uint8 [T, h, w, 3] -> float32 [1, 3, frames, height, width] in [-1, 1]; T > 0
    """
    if len(pictures) != frames:
        pictures = pictures[resample_indices(len(pictures), frames)]
    return to_model([pictures], height, width)
