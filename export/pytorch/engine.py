"""Graphs as PyTorch modules in this process, behind the interface of engines."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from export.graphs.signature import Signature
from streaming.network.inputs import TensorSpec

Call = Callable[..., Sequence[Tensor]]


class ModuleEngine:
    """A graph's module. Inputs are brought to its device and types, as those of other engines are.

    An input that is `optional` may be left out; the module gets None for it.
    """

    def __init__(
        self,
        module: nn.Module,
        signature: Signature,
        *,
        optional: Sequence[str] = (),
        wrapped: Callable[[Call], Call] | None = None,
    ) -> None:
        """wrapped: from the module's call, inputs in order, to one that may overwrite its results."""

        def call(*values: Tensor | None) -> Sequence[Tensor]:
            results = module(**signature.arguments(values))
            return (results,) if isinstance(results, Tensor) else results

        self.inputs, self.outputs = (
            tuple(spec.name for spec in specs) for specs in (signature.inputs, signature.outputs)
        )
        self._call: Call = call if wrapped is None else wrapped(call)
        self._overwritten = wrapped is not None
        self._specs, self._optional = signature.inputs, frozenset(optional)
        self._device, self._dtype = next(module.parameters()).device, _working_type(module)

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """As Engine.run."""
        values = [self._value(spec, inputs) for spec in self._specs]
        if self._device.type == "cpu":
            torch.set_flush_denormal(True)  # trained networks meet such numbers: they take many times longer
        with torch.inference_mode():
            named = dict(zip(self.outputs, self._call(*values), strict=True))
            return {name: named[name].clone() if self._overwritten else named[name] for name in outputs}

    def _value(self, spec: TensorSpec, inputs: Mapping[str, Tensor]) -> Tensor | None:
        if spec.name in self._optional and spec.name not in inputs:
            return None
        dtype = torch.int64 if spec.integer else torch.float32 if spec.float32 else self._dtype
        return inputs[spec.name].to(self._device, dtype, non_blocking=True)


def _working_type(module: nn.Module) -> torch.dtype:
    """Of the weights that are not float32 whatever the others are."""
    for owner in module.modules():
        if not getattr(owner, "float32_parameters", False):
            for parameter in owner.parameters(recurse=False):
                return parameter.dtype
    return torch.float32
