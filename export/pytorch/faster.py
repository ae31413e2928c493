"""What may make PyTorch faster on a GPU, each for itself (`TorchSwitches`)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from export.graphs.layers import fused_elements
from export.pytorch.cuda_graph import CudaRecorder, GraphedCall
from export.pytorch.engine import Call
from streaming.engines.load_plan import TorchSwitches

NOTHING = TorchSwitches(**dict.fromkeys(TorchSwitches.model_fields, False))


def for_cpu(switches: TorchSwitches) -> TorchSwitches:
    """Without what only a GPU has."""
    return NOTHING.model_copy(update={"spare_bias": switches.spare_bias})


def faster_calls(switches: TorchSwitches, most_tokens: int) -> Callable[[Call], Call] | None:
    """From the transformer's call to one that does the same; None: nothing is switched on.

    most_tokens: of a chunk
    """

    def wrapped(call: Call) -> Call:
        call = fused(call) if switches.fused else call
        return GraphedCall(call, CudaRecorder(), most_tokens) if switches.cuda_graph else call

    return wrapped if switches.fused or switches.cuda_graph else None


def fused(call: Call) -> Call:
    """The call, with everything `fusible` in it compiled."""

    def inside(*values: Tensor | None) -> Sequence[Tensor]:
        with fused_elements():
            return call(*values)

    return inside


def channels_innermost(module: nn.Module) -> None:
    """Lay out convolutions so that they read and write pictures with the channels innermost."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            layout = torch.channels_last if layer.weight.ndim == 4 else torch.channels_last_3d
            layer.weight.data = layer.weight.data.contiguous(memory_format=layout)
