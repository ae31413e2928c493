"""Motion between pictures as colours: the hue says where to, the strength how fast (vace.md 10)."""

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from gateway.serving.interface import Images

_SIDE: Final = 512  # pixels of the square in which motion is looked for
_SLOWEST: Final = 1.0  # pixels of it per picture that have the full colour; less is noise, and stays pale
# Colours between two of which the wheel of Baker et al. 2007 goes evenly, and in how many steps.
_CORNERS: Final = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))
_STEPS: Final = (15, 6, 4, 11, 13, 6)

Flow = npt.NDArray[np.float32]


def optical_flow(pictures: Images) -> Images:
    """What moved since the picture before, as colours on white; uint8 [T, H, W, 3].

    The first picture has the motion of the second one. By OpenCV's dense inverse search, without weights.
    """
    import cv2  # not before somebody wants it

    def square(picture: Images) -> Images:
        luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        return np.asarray(cv2.resize(luma, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR), np.uint8)

    def motion(before: Images, after: Images) -> Flow:
        found = search.calc(before, after, np.zeros((_SIDE, _SIDE, 2), np.float32))
        return np.asarray(cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)

    height, width = pictures.shape[1:3]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    squares = [square(picture) for picture in pictures]
    flows = [motion(*pair) for pair in pairwise(squares)] or [np.zeros((height, width, 2), np.float32)]
    fastest = max(_SLOWEST, *(float(np.hypot(flow[..., 0], flow[..., 1]).max()) for flow in flows))
    drawn = [coloured(flow / fastest) for flow in flows]
    return np.stack([drawn[0], *drawn][: len(pictures)])


def coloured(flow: Flow) -> Images:
    """As torchvision's `flow_to_image`: motion [H, W, 2], x to the right and y down, of length 1 at most ->
    uint8 [H, W, 3]."""
    wheel = _wheel()
    speed = np.hypot(flow[..., 0], flow[..., 1])[..., None]
    place = (np.arctan2(-flow[..., 1], -flow[..., 0]) / np.pi + 1) / 2 * (len(wheel) - 1)
    before = np.floor(place).astype(np.intp)
    part = (place - before)[..., None]
    hue = (1 - part) * wheel[before] + part * wheel[(before + 1) % len(wheel)]
    colours: Images = np.floor(255 * (1 - speed * (1 - hue))).clip(0, 255).astype(np.uint8)
    return colours


def _wheel() -> Flow:
    """Colours in the order of the directions, [55, 3] in 0 to 1."""
    rows = []
    for i, steps in enumerate(_STEPS):
        begin, end = np.array(_CORNERS[i]), np.array(_CORNERS[(i + 1) % len(_CORNERS)])
        part = np.floor(255 * np.arange(steps) / steps)[:, None] / 255
        rows.append(begin + (end - begin) * part)
    wheel: Flow = np.concatenate(rows).astype(np.float32) / 255
    return wheel
