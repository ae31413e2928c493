"""Random weights for modules on the meta device: for tests, benchmarks and demonstration checkpoints."""

import torch
from torch import nn

from export.graphs.layers import LayerNorm, RMSNorm


def fill_random(
    module: nn.Module, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> None:
    """Give every parameter random values that keep activations near unit variance; none is zero or one.

    Gains of norms are near 1, matrices and kernels have variance 1 / inputs, the rest is small. The same seed
    gives the same values on the same kind of device. Parameters of float32 modules stay float32.
    """
    generator = torch.Generator(device).manual_seed(seed)
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            own = torch.float32 if getattr(owner, "float32_parameters", False) else dtype
            value = torch.randn(parameter.shape, generator=generator, dtype=own, device=device)
            if isinstance(owner, (LayerNorm, RMSNorm)) or name == "gamma":
                value = 1 + 0.1 * value if name != "bias" else 0.1 * value
            elif name == "weight_t":
                value *= parameter.shape[0] ** -0.5
            elif name == "weight":
                value *= parameter[0].numel() ** -0.5
            else:
                value *= 0.1
            owner.register_parameter(name, nn.Parameter(value, requires_grad=False))
    module.eval()
