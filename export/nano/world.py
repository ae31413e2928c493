"""The world of the nano checkpoint: one flat shape on a flat background, on a torus, described by a sentence.

    a [small|large] <colour> <shape> <motion> on a <colour> background

Everything is drawn from signed distances with anti-aliased edges. For the first `STILL_FRAMES` frames of a
stream nothing moves: the transformer has no absolute time, so that it could not tell the frames of a first
chunk apart. Afterwards a moving shape goes `SPEED` pixels per frame: one latent cell per latent frame.
"""

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

PALETTE: Final[dict[str, tuple[int, int, int]]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 225),
    "yellow": (240, 220, 50),
    "purple": (170, 50, 190),
    "cyan": (60, 210, 220),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
}
COLOURS: Final = tuple(PALETTE)
SHAPES: Final = ("circle", "square", "triangle", "star")
MOTIONS: Final[dict[str, tuple[int, int]]] = {  # direction of x and y; y points down
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
    "stays still": (0, 0),
    "pulses": (0, 0),
}
RADII: Final = {"small": 0.14, "": 0.19, "large": 0.26}  # of the picture's height
SPEED: Final = 2.0  # pixels per frame
PULSE_PERIOD: Final = 32  # frames
PULSE_DEPTH: Final = 0.35
STILL_FRAMES: Final = 9  # pixel frames of a first chunk

Rgb = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt says."""

    size: str
    colour: str
    shape: str
    motion: str
    background: str

    @property
    def prompt(self) -> str:
        size = f"{self.size} " if self.size else ""
        return f"a {size}{self.colour} {self.shape} {self.motion} on a {self.background} background"

    @property
    def velocity(self) -> tuple[float, float]:
        """Pixels per frame, x and y."""
        x, y = MOTIONS[self.motion]
        return SPEED * x, SPEED * y

    @staticmethod
    def drawn(rng: random.Random) -> "Scene":
        colour, background = rng.sample(COLOURS, 2)
        return Scene(
            size=rng.choice(list(RADII)),
            colour=colour,
            shape=rng.choice(SHAPES),
            motion=rng.choice(list(MOTIONS)),
            background=background,
        )

    def changed(self, rng: random.Random) -> "Scene":
        """Another scene that shares something with this one or nothing: colour, background, form, or all."""
        other = Scene.drawn(rng)
        parts: Sequence[tuple[str, ...]] = (
            ("colour",),
            ("background",),
            ("shape", "motion"),
            ("colour", "background"),
            ("colour", "shape", "motion", "background"),
        )
        changes = {name: getattr(other, name) for name in rng.choice(parts)}
        scene = dataclasses.replace(self, **changes)
        return scene if scene.colour != scene.background else self.changed(rng)


@dataclass(frozen=True, slots=True)
class State:
    """Where the shape is before a frame: centre in pixels, frames since it began to move or pulse."""

    x: float
    y: float
    age: int = 0


def draw(
    shape: Sequence[str],
    centre: Tensor,
    radius: Tensor,
    colour: Tensor,
    background: Tensor,
    size: tuple[int, int],
    torus: tuple[int, int] | None = None,
) -> Tensor:
    """Frames of flat shapes.

    shape               of each frame, N
    centre              [N, 2], x and y in pixels
    radius              [N], pixels
    colour, background  [N, 3] in [-1, 1]
    size                height and width of the picture in pixels
    torus               height and width after which the world repeats; default: size
    returns             [N, 3, H, W] in [-1, 1]
    """
    height, width = size
    period = torus or size
    y = (torch.arange(height) + 0.5)[None, :, None] - centre[:, 1, None, None]
    x = (torch.arange(width) + 0.5)[None, None, :] - centre[:, 0, None, None]
    y = (y + period[0] / 2) % period[0] - period[0] / 2
    x = (x + period[1] / 2) % period[1] - period[1] / 2
    r = radius[:, None, None]
    distance = torch.empty(len(shape), height, width)
    for name in set(shape):
        chosen = torch.tensor([each == name for each in shape])
        distance[chosen] = _DISTANCES[name](x[chosen], y[chosen], r[chosen])
    alpha = (0.5 - distance).clamp(0, 1).unsqueeze(1)
    return alpha * colour[:, :, None, None] + (1 - alpha) * background[:, :, None, None]


def _circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.maximum(x.abs().expand(-1, y.shape[1], -1), y.abs().expand(-1, -1, x.shape[2])) - 0.886 * r


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Equilateral, point up, centred at its centroid."""
    inner = 0.72 * r
    sides = (y, 0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y)
    return torch.maximum(torch.maximum(sides[0], sides[1]), sides[2]) - inner


def _star(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Five points: in a sector of 72 degrees, folded about its middle, one straight edge bounds it."""
    angle, length = torch.atan2(x, -y), (x * x + y * y).sqrt()
    sector = 2 * math.pi / 5
    folded = ((angle + sector / 2) % sector - sector / 2).abs()
    outer, inner = 1.3 * r, 0.62 * r
    px, py = length * folded.cos(), length * folded.sin()
    qx, qy = (
        inner * math.cos(sector / 2),
        inner * math.sin(sector / 2),
    )  # inner corner; outer one is (outer, 0)
    nx, ny = qy, outer - qx  # normal of the edge between the two
    return ((px - outer) * nx + py * ny) / (nx * nx + ny * ny).sqrt()


_DISTANCES: Final = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}


def rgb(colour: str | Rgb) -> Tensor:
    """A palette colour, or numbers from 0 to 255 -> [3] in [-1, 1]."""
    values = PALETTE[colour] if isinstance(colour, str) else colour
    return torch.tensor(values, dtype=torch.float32) / 127.5 - 1


def film(
    scene: Scene,
    state: State,
    frames: int,
    size: tuple[int, int],
    still: int = 0,
    colours: tuple[Rgb, Rgb] | None = None,
) -> tuple[Tensor, State]:
    """The next `frames` frames of a scene, [T, 3, H, W] in [-1, 1], and the state after them.

    still    so many of them stand still first
    colours  of shape and background in place of the scene's, 0 to 255
    """
    moved = [max(0, i + 1 - still) for i in range(frames)]
    dx, dy = scene.velocity
    centre = torch.tensor([[state.x + dx * k, state.y + dy * k] for k in moved])
    base = RADII[scene.size] * size[0]
    depth = PULSE_DEPTH if scene.motion == "pulses" else 0.0
    phase = 2 * math.pi / PULSE_PERIOD
    radius = torch.tensor([base * (1 + depth * math.sin(phase * (state.age + k))) for k in moved])
    colour, background = colours or (PALETTE[scene.colour], PALETTE[scene.background])
    pictures = draw(
        [scene.shape] * frames,
        centre,
        radius,
        rgb(colour).expand(frames, 3),
        rgb(background).expand(frames, 3),
        size,
    )
    height, width = size
    age = (state.age + moved[-1]) if scene.motion == "pulses" else 0
    return pictures, State((state.x + dx * moved[-1]) % width, (state.y + dy * moved[-1]) % height, age)
