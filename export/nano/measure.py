"""What is in a picture of the world: colours, place, form and motion, from the pixels alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.nano.styles import TILE
from export.nano.world import COLOURS, PALETTE, SHAPES, SPEED, Scene, draw

Images = npt.NDArray[np.uint8]  # [T, H, W, 3] or [H, W, 3]
PALETTE_RGB = np.array([PALETTE[name] for name in COLOURS], dtype=np.float32)
LEAST_OBJECT = 0.01  # part of the picture
LIGHT = 150  # of all three channels: no palette colour but white has it


@dataclass(frozen=True, slots=True)
class Seen:
    """The two most frequent palette colours of a picture, and the part of it that each covers."""

    background: str
    object: str
    background_part: float
    object_part: float


def classes(image: Images) -> npt.NDArray[Any]:
    """Index of the nearest palette colour of each pixel: [H, W, 3] -> [H, W]."""
    distance = np.square(image[..., None, :].astype(np.float32) - PALETTE_RGB).sum(axis=-1)
    nearest: npt.NDArray[Any] = distance.argmin(axis=-1)
    return nearest


def look(image: Images) -> Seen:
    counts = np.bincount(classes(image).ravel(), minlength=len(COLOURS)) / image[..., 0].size
    first, second = np.argsort(-counts, kind="stable")[:2]
    return Seen(COLOURS[first], COLOURS[second], float(counts[first]), float(counts[second]))


def background_right(image: Images, scene: Scene) -> bool:
    return look(image).background == scene.background


def object_right(image: Images, scene: Scene) -> bool:
    seen = look(image)
    return seen.object == scene.colour and seen.object_part > LEAST_OBJECT


def background_error(image: Images, scene: Scene) -> float:
    """Mean difference, of 255, between the pixels of the prompted background's class and its colour."""
    chosen = classes(image) == COLOURS.index(scene.background)
    if not chosen.any():
        return 255.0
    return float(np.abs(image[chosen].mean(axis=0) - PALETTE[scene.background]).mean())


def object_mask(image: Images, scene: Scene) -> npt.NDArray[np.bool_]:
    """Pixels nearer to the shape's colour than to the background's."""
    pixels = image.astype(np.float32)
    own, other = (np.square(pixels - PALETTE[name]).sum(axis=-1) for name in (scene.colour, scene.background))
    mask: npt.NDArray[np.bool_] = own < other
    return mask


def place(mask: npt.NDArray[np.bool_]) -> tuple[float, float] | None:
    """Centre on the torus, x and y in pixels; None when there is nothing."""
    if not mask.any():
        return None
    found = []
    for axis in (1, 0):
        size = mask.shape[axis]
        weight = mask.sum(axis=1 - axis)
        angle = 2 * math.pi * (np.arange(size) + 0.5) / size
        mean = (weight * np.exp(1j * angle)).sum()
        found.append(float(np.angle(mean) % (2 * math.pi) * size / (2 * math.pi)))
    return found[0], found[1]


def wrapped(difference: float, size: int) -> float:
    """A difference of places on the torus, from -size / 2 to size / 2."""
    return (difference + size / 2) % size - size / 2


def velocity(images: Images, scene: Scene) -> tuple[float, float] | None:
    """Mean motion in pixels per frame, x and y, over [T, H, W, 3]; None when the shape is missing."""
    places = [place(object_mask(image, scene)) for image in images]
    steps = []
    for before, after in pairwise(places):
        if before is None or after is None:
            return None
        size = images.shape[2], images.shape[1]
        steps.append([wrapped(b - a, n) for a, b, n in zip(before, after, size, strict=True)])
    x, y = np.mean(steps, axis=0)
    return float(x), float(y)


def motion_right(images: Images, scene: Scene) -> bool:
    """Within 1 pixel per frame of the world's velocity."""
    found = velocity(images, scene)
    return found is not None and math.dist(found, scene.velocity) <= SPEED / 2


def best_shape(image: Images, scene: Scene) -> tuple[str, float]:
    """The form that covers the mask best when it has the mask's area, and that intersection over union."""
    mask = object_mask(image, scene)
    centre = place(mask)
    if centre is None:
        return "", 0.0
    shifts = np.arange(-4, 5, 2)
    best: tuple[str, float] = ("", 0.0)
    for name in SHAPES:
        for dy in shifts:
            template = _template(name, (centre[0], centre[1] + float(dy)), int(mask.sum()), mask.shape)
            union = (mask | template).sum()
            score = float((mask & template).sum() / union)
            if score > best[1]:
                best = name, score
    return best


_AREA = {"circle": 3.14, "square": 3.14, "triangle": 2.69, "star": 2.37}  # of radius 1


def _template(
    name: str, centre: tuple[float, float], area: int, size: Sequence[int]
) -> npt.NDArray[np.bool_]:
    radius = (area / _AREA[name]) ** 0.5
    picture = draw(
        torch.tensor([SHAPES.index(name)]),
        torch.tensor([centre]),
        torch.tensor([radius]),
        torch.ones(1, 3),
        -torch.ones(1, 3),
        (size[0], size[1]),
    )
    result: npt.NDArray[np.bool_] = picture[0, 0].numpy() > 0
    return result


def tile_contrast(image: Images) -> float:
    """How much the tiles of `styles.checkered` differ in brightness, 0 to 1, whichever are the darker."""
    height, width = image.shape[:2]
    y, x = np.arange(height) // TILE, np.arange(width) // TILE
    dark = (y[:, None] + x[None, :]) % 2 == 1
    brightness = image.astype(np.float32).mean(axis=-1)
    light, other = float(brightness[~dark].mean()), float(brightness[dark].mean())
    return abs(light - other) / max(1.0, light, other)


def rim_part(image: Images) -> float:
    """The part of a picture that is as light as the rim of `styles.outlined`; for scenes without white."""
    return float((image.min(axis=-1) > LIGHT).mean())
