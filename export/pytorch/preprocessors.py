"""Preprocessors of control video that are networks, in PyTorch (vace.md 10)."""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.checkpoints.checkpoints import load_weights, open_checkpoint
from export.graphs.depth import PATCH, DepthConfig, VideoDepth
from export.pytorch.engine import ModuleEngine
from streaming.checkpoints.files import PREPROCESSOR_FILES, CheckpointError
from streaming.engines.load_plan import LoadPlan
from streaming.errors import WanstreamError
from streaming.triton.sessions import Images

Preprocess = Callable[[Images], Images]

_SHORT_SIDE: Final = 518  # pixels, of what the network is shown
_AT_ONCE: Final = 4  # pictures
_MEAN: Final = (0.485, 0.456, 0.406)
_DEVIATION: Final = (0.229, 0.224, 0.225)


def load_preprocessor(name: str, plan: LoadPlan) -> Preprocess:
    """A preprocessor whose weights lie in the directory of models. Raises WanstreamError."""
    if name not in PREPROCESSOR_FILES or plan.preprocessors is None:
        raise WanstreamError(f"There is no preprocessor '{name}' here: choose another one.")
    path = plan.preprocessors / PREPROCESSOR_FILES[name]
    if not path.is_file():
        raise WanstreamError(
            f"The weights of preprocessor '{name}' are not there ({PREPROCESSOR_FILES[name]}). "
            f"Run: download_models --pipeline {name}."
        )
    on_gpu = torch.cuda.is_available() and (plan.gpus or (plan.pytorch is not None and plan.pytorch.on_gpu))
    checkpoint = open_checkpoint(path)
    try:
        config = DepthConfig.from_shapes({key: entry.shape for key, entry in checkpoint.entries.items()})
    except KeyError as error:
        raise CheckpointError(f"'{path.name}' is not Video-Depth-Anything: it has no {error}.") from error
    with torch.device("meta"):
        network = VideoDepth(config)
    load_weights(checkpoint, network, device="cuda:0" if on_gpu else "cpu")
    return Depth(network)


class Depth:
    """Pictures as their depth: near is white. Each group of four has the whole range."""

    def __init__(self, network: VideoDepth, short_side: int = _SHORT_SIDE) -> None:
        """short_side: of what the network is shown, in pixels, a multiple of 14."""
        self.network = network
        self._short_side = short_side

    def __call__(self, pictures: Images) -> Images:
        """uint8 [T, H, W, 3] RGB from and to."""
        groups = [self._group(pictures[i : i + _AT_ONCE]) for i in range(0, len(pictures), _AT_ONCE)]
        return np.concatenate(groups)

    def _group(self, pictures: Images) -> Images:
        size = shown_size(pictures.shape[1], pictures.shape[2], self._short_side)
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, size, mode="bicubic")
        x = (x - _per_channel(_MEAN)) / _per_channel(_DEVIATION)
        engine = ModuleEngine(self.network, VideoDepth.signature(*size))
        depth = engine.run({"pictures": x}, ["depth"])["depth"].float().cpu()
        depth = F.interpolate(depth[:, None], pictures.shape[1:3], mode="bilinear", align_corners=True)[:, 0]
        low, high = depth.aminmax()
        levels: Images = ((depth - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8).numpy()
        return levels[..., None].repeat(3, axis=-1)


def shown_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Sides of about the same shape, multiples of 14, the shorter one of that length.

    Films that are longer than 16:9 are shown smaller, as its authors do.
    """
    ratio = max(height, width) / min(height, width)
    if ratio > 1.78:
        short_side = round(int(short_side * 1.777 / ratio) / PATCH) * PATCH
    scale = short_side / min(height, width)
    sides = [max(short_side, round(side * scale / PATCH) * PATCH) for side in (height, width)]
    return sides[0], sides[1]


def _per_channel(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values)[:, None, None]
