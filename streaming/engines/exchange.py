"""Tensors on their way to another model of the server and back: as numpy arrays, or by DLPack."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack


def to_triton(tensor: Tensor) -> Any:
    """As a numpy array, the fastest way into Triton; what numpy does not have speaks DLPack itself."""
    if tensor.dtype == torch.bfloat16 or tensor.is_cuda:
        return tensor.contiguous()
    return tensor.numpy()


def from_triton(value: Any) -> Tensor:
    """From what speaks DLPack. On the CPU a copy, for the memory is the server's until the response ends."""
    tensor: Tensor = from_dlpack(value)
    return tensor if tensor.is_cuda else tensor.clone()
