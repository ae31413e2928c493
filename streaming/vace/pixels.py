"""Pixels of a VACE context: images and frames to clips, masks to channels (vace.md 3 and 4). Torch-free.

Clips are float32 [1, 3, F, H, W] in [-1, 1], masks [1, 1, F, H, W] in [0, 1], 1 where pixels are to be made.
"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from streaming.errors import WanstreamError
from streaming.network.video import PIXEL_MAX, Array, resample_indices, resize, to_model

Fit = Literal["cover", "letterbox"]
PIXELS_PER_LATENT: Final = 8  # in height and in width
GROUP: Final = 4  # pixel frames of an image that begins or ends a chunk
_REMOVED: Final = 0.5  # a mask above it

Frames = npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]]


def image_clip(image: Array, height: int, width: int, fit: Fit = "cover") -> Array:
    """An image of any size as a clip of one frame.

    image   [h, w, 3], 0 to 255
    fit     "cover" fills the picture and crops, "letterbox" shows all of the image on white
    """
    h, w, _ = image.shape
    sides = height / h, width / w
    scale = max(sides) if fit == "cover" else min(sides)
    new_h, new_w = int(h * scale), int(w * scale)  # of Python's floats: 31.999999 is 31, as in the reference
    if fit == "cover":
        new_h, new_w = max(new_h, height), max(new_w, width)
    values = np.asarray(image, np.float32)[None] / np.float32(PIXEL_MAX)
    values = (values - np.float32(0.5)) / np.float32(0.5)
    if (h, w) != (height, width):
        values = resize(values, max(new_h, 1), max(new_w, 1))
        values = _placed(values, height, width)
    return np.ascontiguousarray(values.transpose(3, 0, 1, 2)[None])


def _placed(frames: Array, height: int, width: int) -> Array:
    """In the middle: cropped where it is larger, on white where it is smaller."""
    _, h, w, _ = frames.shape
    top, left = (h - height) // 2, (w - width) // 2
    if h >= height and w >= width:
        return frames[:, top : top + height, left : left + width]
    canvas = np.ones((len(frames), height, width, 3), np.float32)
    top, left = (height - h) // 2, (width - w) // 2
    canvas[:, top : top + h, left : left + w] = frames
    return canvas


def control_clip(frames: Frames, height: int, width: int, count: int) -> Array:
    """Control frames, uint8 [h, w, 3] of any sizes, as a clip of `count` frames."""
    taken = [np.asarray(frames[i])[None] for i in resample_indices(len(frames), count)]
    return to_model(taken, height, width)


def mask_clip(masks: Frames, height: int, width: int, count: int) -> Array:
    """Masks, uint8 [h, w, 1] of any sizes, for `count` frames."""
    taken = [np.asarray(masks[i])[None] for i in resample_indices(len(masks), count)]
    fitted = [m if m.shape[1:3] == (height, width) else resize(m, height, width) for m in taken]
    clip = np.concatenate([m.astype(np.float32) for m in fitted]) / np.float32(PIXEL_MAX)
    return np.ascontiguousarray(np.clip(clip, 0, 1).transpose(3, 0, 1, 2)[None])


def checked(frames: Array, masks: Array | None, height: int, width: int) -> tuple[Array, Array]:
    """A clip and its masks, ones where there are none. Raises WanstreamError for other shapes."""
    if frames.ndim != 5:
        raise WanstreamError(f"Control frames must be [B, C, F, H, W], not {list(frames.shape)}.")
    B, channels, count = frames.shape[:3]
    if frames.shape[3:] != (height, width):
        raise WanstreamError(
            f"Control frames are {frames.shape[3]}x{frames.shape[4]}, the stream is {height}x{width}."
        )
    if channels not in (1, 3):
        raise WanstreamError(f"Control frames must have 3 channels, or 1, not {channels}.")
    if masks is None:
        masks = np.ones((B, 1, count, height, width), np.float32)
    if masks.shape != (B, 1, count, height, width):
        raise WanstreamError(
            f"Masks must be {[B, 1, count, height, width]}, as their frames, not {list(masks.shape)}."
        )
    return (frames if channels == 3 else np.repeat(frames, 3, axis=1)), masks


def split(frames: Array, masks: Array) -> tuple[Array, Array]:
    """What stays, and what is to be made: the inactive and the reactive clip, removed pixels mid grey."""
    removed = (masks > _REMOVED).astype(frames.dtype)
    return frames * (1 - removed), frames * removed


def mask_channels(masks: Array) -> Array:
    """Masks [1, 1, F, H, W] as they are, not binarised: [1, 64, F', H / 8, W / 8]."""
    side = PIXELS_PER_LATENT
    B, _, count, height, width = masks.shape
    latent_frames = (count + 3) // 4
    chosen = masks[:, 0, [int((t + 0.5) * count / latent_frames) for t in range(latent_frames)]]
    tiles = chosen.reshape(B, latent_frames, height // side, side, width // side, side)
    packed = tiles.transpose(0, 3, 5, 1, 2, 4)
    return np.ascontiguousarray(packed.reshape(B, side * side, latent_frames, *packed.shape[4:]))


def extended(
    frames: Array | None, masks: Array | None, first: Array | None, last: Array | None, count: int
) -> tuple[Array, Array]:
    """A clip of `count` frames that an image begins, ends, or both, and its masks.

    frames, masks   of a control video; masks without frames are ignored
    first, last     clips of one frame
    """
    image = first if first is not None else last
    assert image is not None, "an extension has an image"
    if first is not None and last is not None and count < 2 * GROUP:
        raise WanstreamError(
            f"This pipeline makes {count} frames at a time, too few for a first and a last image at once. "
            "Send one of them."
        )
    shape = (1, 1, count, *image.shape[3:])
    has_masks = frames is not None and masks is not None
    clip = np.zeros((1, 3, *shape[2:]), np.float32) if frames is None else _exactly(frames, count)
    mask = _exactly(masks, count) if has_masks and masks is not None else np.ones(shape, np.float32)
    for picture, at in ((first, slice(0, GROUP)), (last, slice(count - GROUP, count))):
        if picture is not None:
            group = np.repeat(picture, GROUP, axis=2)
            placed = np.where(mask[:, :, at] > _REMOVED, group, clip[:, :, at]) if has_masks else group
            clip[:, :, at], mask[:, :, at] = placed, 0
    return clip, mask


def _exactly(clip: Array, count: int) -> Array:
    """The first frames, the last one repeated where there are too few; a copy."""
    return clip[:, :, np.minimum(np.arange(count), clip.shape[2] - 1)]
