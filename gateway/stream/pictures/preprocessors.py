"""What VACE is shown in place of the input pictures: the preprocessors that need no weights (vace.md 10)."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

import av
import numpy as np
from av.filter import Graph

from gateway.serving.interface import Images
from gateway.stream.pictures.optical_flow import optical_flow

_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
# Canny's two thresholds: an edge begins where the gradient is steep, and goes on while it is not flat.
_FLAT, _STEEP = 20 / 255, 50 / 255


def gray(pictures: Images) -> Images:
    """Luma in all three channels; uint8 [T, H, W, 3]."""
    return _in_three_channels(_luma(pictures))


def scribble(pictures: Images) -> Images:
    """Edges as white lines on black, three pixels wide: Canny's, by FFmpeg; uint8 [T, H, W, 3].

    A line of one pixel is lost in a latent frame, of which a value stands for eight by eight of them.
    """
    count, height, width = pictures.shape[:3]
    graph = _canny(height, width)
    edges = np.empty((count, height, width), np.uint8)
    for target, luma in zip(edges, _luma(pictures), strict=True):
        graph.push(av.VideoFrame.from_ndarray(luma, format="gray"))
        frame = graph.pull()
        assert isinstance(frame, av.VideoFrame)
        target[:] = frame.to_ndarray()
    return _in_three_channels(edges)


def _luma(pictures: Images) -> Images:
    luma: Images = np.rint(pictures @ _LUMA).astype(np.uint8)
    return luma


def _in_three_channels(planes: Images) -> Images:
    return planes[..., None].repeat(3, axis=-1)


def _canny(height: int, width: int) -> Graph:
    graph = Graph()
    steps = [
        graph.add("buffer", f"width={width}:height={height}:pix_fmt=gray:time_base=1/25"),
        graph.add("edgedetect", f"low={_FLAT}:high={_STEEP}:mode=wires"),
        graph.add("dilation"),
        graph.add("buffersink"),
    ]
    for step, following in pairwise(steps):
        step.link_to(following)
    graph.configure()
    return graph


PREPROCESSORS: Final[Mapping[str, Callable[[Images], Images]]] = {
    "gray": gray,
    "scribble": scribble,
    "optical-flow": optical_flow,
}
