"""Random weights for modules built on the meta device; timing zeros would be too kind."""

import torch
from torch import nn


def fill_random(module: nn.Module, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
    """Give every parameter random values that keep activations finite; float32 modules stay float32."""
    generator = torch.Generator(device).manual_seed(seed)
    for owner in module.modules():
        own = torch.float32 if getattr(owner, "float32_parameters", False) else dtype
        for name, parameter in list(owner.named_parameters(recurse=False)):
            value = torch.randn(parameter.shape, generator=generator, dtype=own, device=device)
            value *= max(parameter[0].numel(), 1) ** -0.5 if parameter.ndim > 1 else 0.1
            owner.register_parameter(name, nn.Parameter(value, requires_grad=False))
    module.to(device).eval()
