"""The rules that make a graph exportable (serving.md 9), as one check."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

FORBIDDEN_TYPES = {torch.float64, torch.complex32, torch.complex64, torch.complex128}
# Rule 8: become ScatterND; rule 10: read a value back to the host, or have a shape that depends on values.
FORBIDDEN_OPS = {
    "index_put",
    "index_copy",
    "index_add",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "select_scatter",
    "slice_scatter",
    "diagonal_scatter",
    "masked_scatter",
    "masked_select",
    "nonzero",
    "unique",
    "item",
    "_local_scalar_dense",
    "roll",
    "scaled_dot_product_attention",  # its softmax would run in the graph's own type
}


def assert_exportable(
    module: nn.Module, arguments: dict[str, Any], dynamic_shapes: Any = None
) -> ExportedProgram:
    """Trace the module and check every node; the program, which gives the module's results.

    Tracing itself fails for Python that depends on a tensor's values. Raises AssertionError naming the nodes.
    """
    program = torch.export.export(module, (), arguments, dynamic_shapes=dynamic_shapes)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    wrong_types = [f"{node}: {dtype}" for node in calls for dtype in _types(node) if dtype in FORBIDDEN_TYPES]
    in_place = [str(node) for node in calls if _writes(node)]
    forbidden = [str(node) for node in calls if _name(node) in FORBIDDEN_OPS]
    assert not wrong_types, f"complex or float64: {wrong_types}"
    assert not in_place, f"in place: {in_place}"
    assert not forbidden, f"ops that do not export well: {forbidden}"
    constants = [name for name, tensor in program.constants.items() if _type(tensor) in FORBIDDEN_TYPES]
    assert not constants, f"complex or float64 constants: {constants}"
    return program


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.partition("::")[2].rstrip("_")


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _types(node: Node) -> set[torch.dtype | None]:
    value = node.meta.get("val")
    return {_type(part) for part in (value if isinstance(value, (tuple, list)) else (value,))}


def _type(value: Any) -> torch.dtype | None:
    return value.dtype if isinstance(value, Tensor) else None
