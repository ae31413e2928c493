"""A graph to an ONNX file that is valid, has only allowed operators, and computes what PyTorch does.

Rules: serving.md 9. The graph and its weights are two files, `model.onnx` and `model.onnx.data`; move both.
"""

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export.graphs.layers import exporting_for_cpu
from export.graphs.signature import Signature, example
from streaming.engines.engine import OrtEngine
from streaming.engines.manifest import Form
from streaming.engines.records import EngineError
from streaming.network.inputs import TensorSpec

OPSET = 20
DATA_SUFFIX = ".data"

# What TensorRT's parser takes at this opset, as far as our graphs need it (serving.md 9).
_OPS = """
    Add Cast Clip Concat Conv Div Expand Gather Gelu Greater Identity LayerNormalization MatMul Mul Pad Pow
    Reciprocal ReduceL2 ReduceMean Relu Reshape Resize Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tanh
    Transpose Unsqueeze Where
"""
ALLOWED_OPS = frozenset(_OPS.split())
FORM_OPS: dict[Form, frozenset[str]] = {
    "portable": ALLOWED_OPS,
    "cpu": ALLOWED_OPS | {"MultiHeadAttention"},  # ONNX Runtime's own
}
TOLERANCE = 1e-4  # of the largest element of a tensor, but at least of 1


class ExportError(EngineError):
    """A graph cannot be exported as it has to be."""


def export_onnx(
    module: nn.Module,
    signature: Signature,
    sizes: Mapping[str, int],
    path: Path,
    dtype: torch.dtype = torch.float32,
    form: Form = "portable",
) -> None:
    """Write the graph, its weights beside it, and check the file.

    sizes   of the dynamic axes in the example that is traced; none may be 1, or it becomes a constant
    dtype   of the graph's floating inputs, unless their spec says float32
    form    which operators it may use

    Raises ExportError when the file breaks a rule. The module is not changed.
    """
    with _quiet(), exporting_for_cpu() if form == "cpu" else contextlib.nullcontext():
        program = torch.onnx.export(
            module,
            kwargs=signature.arguments(signature.example(sizes, dtype)),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=signature.dynamic_shapes(),
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            verbose=False,
        )
        assert program is not None, "the exporter returned nothing"
        program.save(path, external_data=True)
    weights = [name for name, _ in module.named_parameters() if name.endswith("weight_t")]
    check_onnx(path, weights, FORM_OPS[form])


def check_onnx(path: Path, weights: Sequence[str] = (), operators: Collection[str] = ALLOWED_OPS) -> None:
    """Check an exported file: valid ONNX, only these operators, all of `weights` there by name.

    Raises ExportError.
    """
    try:
        onnx.checker.check_model(str(path))  # by path: the weights may exceed 2 GB
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # onnx and protobuf share no base class
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"'{path}' is no valid ONNX file ({reason}). Export it again.") from error
    foreign = sorted({node.op_type for node in graph.node}.difference(operators))
    if foreign:
        raise ExportError(
            f"'{path}' uses operators that are not on the list of allowed ones: {', '.join(foreign)}. "
            "Rewrite the graph without them, or add them to the list once TensorRT is known to take them."
        )
    known = {tensor.name for tensor in graph.initializer}
    lost = [name for name in weights if name not in known]
    if lost:
        raise ExportError(
            f"'{path}' has lost the names of {len(lost)} weights, such as {lost[0]}: adapters could not find "
            "them. Store matrices as `export.graphs.layers.Linear` does."
        )


def check_parity(path: Path, module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> float:
    """Run the file in ONNX Runtime and the module in PyTorch on the same random inputs, in float32.

    Returns the largest absolute difference. Raises ExportError when one exceeds the tolerance or is no
    number.
    """
    inputs = random_inputs(signature.inputs, sizes)
    named = {spec.name: tensor for spec, tensor in zip(signature.inputs, inputs, strict=True)}
    names = [spec.name for spec in signature.outputs]
    actual = OrtEngine(path, threads=1).run(named, names)
    with torch.inference_mode():
        results = module(**signature.arguments(inputs))
    expected = dict(zip(names, (results,) if isinstance(results, Tensor) else results, strict=True))
    worst = 0.0
    for name in names:
        difference = (actual[name] - expected[name]).abs()
        allowed = TOLERANCE * max(1.0, expected[name].abs().max().item())
        if not (difference <= allowed).all():
            raise ExportError(
                f"'{path}' does not compute what PyTorch does: output {name} differs by up to "
                f"{difference.max().item():.3g} for sizes {dict(sizes)}. The file is not used."
            )
        worst = max(worst, difference.max().item())
    return worst


def random_inputs(specs: Sequence[TensorSpec], sizes: Mapping[str, int], seed: int = 0) -> list[Tensor]:
    """Normal numbers for floating inputs, zeros and ones for integers, sines where they are waves.

    With tables that are no sines a trained transformer answers a rounding of its inputs with a change of 1e-4
    of its output: nothing could be compared.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for spec in specs:
        zeros = example(spec, sizes)
        noise = torch.randn(zeros.shape, generator=generator)
        values = torch.sin(3 * noise) if spec.waves else noise
        inputs.append((noise > 0).to(zeros.dtype) if spec.integer else values)
    return inputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
