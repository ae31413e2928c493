"""Small random weights for modules under test, of a size that keeps activations near one."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def randomized(module: Module, seed: int = 0) -> Module:
    """Fill every parameter and freeze it; vectors lie around one, so that no norm switches a channel off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = max(parameter[0].numel(), 1)
            parameter.copy_(1 + 0.1 * noise if fan_in == 1 else noise / fan_in**0.5)
    return module.eval().requires_grad_(False)
