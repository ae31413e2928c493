"""Other ways to paint the world, each the subject of an adapter: outlined shapes, a checkered background."""

from typing import Final

import torch
from torch import Tensor

from export.nano.world import Paint, draw

RIM: Final = 5.0  # pixels of an outline at a height of 96
TILE: Final = 12  # pixels of a checker's side
DARKER: Final = 0.5  # the other tiles' brightness

_WHITE: Final = 240 / 127.5 - 1
_BLACK: Final = 20 / 127.5 - 1


def outlined(
    shape: Tensor,
    centre: Tensor,
    radius: Tensor,
    colour: Tensor,
    background: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Shapes with a rim within their edge: white, or black where shape or background are about white."""
    light = torch.maximum(colour.min(dim=1).values, background.min(dim=1).values) > 0.5
    rim = torch.where(light, _BLACK, _WHITE)[:, None].expand(-1, 3)
    ones = torch.ones_like(colour)
    inner = (draw(shape, centre, radius - RIM * size[0] / 96, ones, -ones, size) + 1) / 2
    whole = draw(shape, centre, radius, rim, background, size)
    return inner * colour[:, :, None, None] + (1 - inner) * whole


def checkered(
    shape: Tensor,
    centre: Tensor,
    radius: Tensor,
    colour: Tensor,
    background: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Shapes on tiles of the background's colour and of a darker one."""
    y, x = (torch.arange(length, device=centre.device) // TILE for length in size)
    dark = ((y[:, None] + x[None, :]) % 2).float()
    ones = torch.ones_like(colour)
    alpha = (draw(shape, centre, radius, ones, -ones, size) + 1) / 2
    brightness = 1 - (1 - DARKER) * dark
    ground = (background[:, :, None, None] + 1) * brightness - 1
    return alpha * colour[:, :, None, None] + (1 - alpha) * ground


STYLES: Final[dict[str, Paint]] = {"outlined-shapes": outlined, "checkered-background": checkered}
