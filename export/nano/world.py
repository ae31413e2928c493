"""The world of the nano checkpoint: one flat shape on a flat background, on a torus, described by a sentence.

    a [small|large] <colour> <shape> <motion> on a <colour> background

Everything is drawn from signed distances with anti-aliased edges. For the first `STILL_FRAMES` frames of a
stream nothing moves: the transformer has no absolute time, so that it could not tell the frames of a first
chunk apart. Afterwards a moving shape goes `SPEED` pixels per frame: one latent cell per latent frame.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
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

CPU: Final = torch.device("cpu")


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


@dataclass(frozen=True, eq=False, slots=True)
class States:
    """Where the shapes of n films are before a frame.

    place  [n, 2], centre in pixels, x and y
    age    [n], frames since a shape began to pulse
    """

    place: Tensor
    age: Tensor

    @staticmethod
    def drawn(rng: random.Random, n: int, size: tuple[int, int], device: torch.device = CPU) -> "States":
        """Anywhere on the torus, in any phase."""
        places = [[rng.uniform(0, size[1]), rng.uniform(0, size[0])] for _ in range(n)]
        ages = [float(rng.randrange(PULSE_PERIOD)) for _ in range(n)]
        return States(torch.tensor(places, device=device), torch.tensor(ages, device=device))


def draw(
    shape: Tensor,
    centre: Tensor,
    radius: Tensor,
    colour: Tensor,
    background: Tensor,
    size: tuple[int, int],
    torus: tuple[int, int] | None = None,
) -> Tensor:
    """Frames of flat shapes, on the device of the arguments.

    shape               [N], index in SHAPES
    centre              [N, 2], x and y in pixels
    radius              [N], pixels
    colour, background  [N, 3] in [-1, 1]
    size                height and width of the picture in pixels
    torus               height and width after which the world repeats; default: size
    returns             [N, 3, H, W] in [-1, 1]
    """
    height, width = size
    period = torus or size
    device = centre.device
    y = (torch.arange(height, device=device) + 0.5)[None, :, None] - centre[:, 1, None, None]
    x = (torch.arange(width, device=device) + 0.5)[None, None, :] - centre[:, 0, None, None]
    y = (y + period[0] / 2) % period[0] - period[0] / 2
    x = (x + period[1] / 2) % period[1] - period[1] / 2
    r = radius[:, None, None]
    distance = torch.zeros(len(shape), height, width, device=device)
    for index, name in enumerate(SHAPES):
        distance = torch.where(shape[:, None, None] == index, _DISTANCES[name](x, y, r), distance)
    alpha = (0.5 - distance).clamp(0, 1).unsqueeze(1)
    return alpha * colour[:, :, None, None] + (1 - alpha) * background[:, :, None, None]


def _circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.886 * r


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


Paint = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[int, int]], Tensor]


def film(
    scenes: Sequence[Scene],
    states: States,
    frames: int,
    size: tuple[int, int],
    still: int = 0,
    colours: tuple[Tensor, Tensor] | None = None,
    paint: Paint = draw,
) -> tuple[Tensor, States]:
    """The next `frames` frames of n scenes, [n, T, 3, H, W] in [-1, 1], and the states after them.

    still    so many of them stand still first
    colours  of shapes and backgrounds in place of the scenes', [n, 3] each in [-1, 1]
    paint    draws the shapes, see `draw`
    """
    device, n = states.place.device, len(scenes)
    moved = (torch.arange(frames, device=device) + 1.0 - still).clamp(min=0)
    velocity = torch.tensor([scene.velocity for scene in scenes], device=device)
    centre = states.place[:, None] + velocity[:, None] * moved[None, :, None]
    pulses = torch.tensor([float(scene.motion == "pulses") for scene in scenes], device=device)
    base = torch.tensor([RADII[scene.size] * size[0] for scene in scenes], device=device)
    swing = torch.sin(2 * math.pi / PULSE_PERIOD * (states.age[:, None] + moved))
    radius = base[:, None] * (1 + PULSE_DEPTH * pulses[:, None] * swing)
    shape = torch.tensor([SHAPES.index(scene.shape) for scene in scenes], device=device)
    own, ground = colours or (palette_of(scenes, "colour", device), palette_of(scenes, "background", device))
    pictures = paint(
        shape.repeat_interleave(frames),
        centre.flatten(0, 1),
        radius.flatten(),
        own.repeat_interleave(frames, 0),
        ground.repeat_interleave(frames, 0),
        size,
    )
    period = torch.tensor([float(size[1]), float(size[0])], device=device)
    after = States((states.place + velocity * moved[-1]) % period, (states.age + moved[-1]) * pulses)
    return pictures.reshape(n, frames, *pictures.shape[1:]), after


def palette_of(scenes: Sequence[Scene], part: str, device: torch.device = CPU) -> Tensor:
    """The "colour" or the "background" of scenes, [n, 3] in [-1, 1]."""
    values = [PALETTE[getattr(scene, part)] for scene in scenes]
    return torch.tensor(values, dtype=torch.float32, device=device) / 127.5 - 1
