"""FP8 transformers: Q/DQ pairs around the matrix products of the blocks (serving.md 12).

ModelOpt calibrates the float32 reference of the exported file with calls that a real stream has made; the
scales that it finds go into the file itself, whose other operations stay bfloat16. ModelOpt wants other
versions of onnx and ONNX Runtime than we do, so it runs in an environment of its own, as a process.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from export.fp8.float32_reference import save, write_float32_reference
from export.onnx.onnx_export import ExportError
from streaming.engines.manifest import Quantization
from streaming.errors import WanstreamError

Array = npt.NDArray[Any]

# Embeddings, modulation and head stay as they are, and so do the keys and values of the prompt, which are
# another graph: small products that much depends on.
_QUANTIZED: Final = re.compile(r"blocks\.\d+\..+\.weight_t")
FP8_OPS: Final = ("QuantizeLinear", "DequantizeLinear")
_LARGEST: Final = 448.0  # of float8 e4m3fn
_MOST_ERROR: Final = 0.25  # more than that is no rounding
_WORKER: Final = Path(__file__).with_name("modelopt_worker.py")


class ModelOptError(WanstreamError):
    """NVIDIA's ModelOpt is not there, or has failed."""


@dataclass(frozen=True, slots=True)
class ModelOpt:
    """ModelOpt in the environment of this Python interpreter."""

    python: Path = Path(sys.executable)

    def version(self) -> str:
        """Such as "modelopt 0.47.0". Raises ModelOptError when it cannot be imported."""
        try:
            return self._run()
        except ModelOptError as error:
            raise ModelOptError(
                f"FP8 needs NVIDIA's ModelOpt in an environment of its own, and '{self.python}' has none "
                f"({error}). Run: python3 -m venv ~/modelopt && ~/modelopt/bin/pip install "
                "'nvidia-modelopt[onnx]>=0.47,<0.50', then export with --modelopt ~/modelopt/bin/python."
            ) from error

    def quantize(self, graph: Path, nodes: Sequence[str], calls: Sequence[Path], output: Path) -> str:
        """Write `graph` with Q/DQ pairs at the inputs of these nodes; returns the version.

        calls: files of inputs, as `CallRecorder` writes them. Raises ModelOptError.
        """
        job = {
            "onnx": str(graph),
            "nodes": list(nodes),
            "calls": list(map(str, calls)),
            "output": str(output),
        }
        return self._run(json.dumps(job))

    def _run(self, *arguments: str) -> str:
        """In an empty directory, and not by path: our modules' names must not hide anybody's."""
        source = _WORKER.read_text(encoding="utf-8")
        try:
            with tempfile.TemporaryDirectory() as nowhere:
                done = subprocess.run(
                    [str(self.python.absolute()), "-c", source, *arguments],
                    cwd=nowhere,
                    capture_output=True,
                    text=True,
                    check=False,
                )
        except OSError as error:
            raise ModelOptError(f"it cannot be started: {error}") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise ModelOptError(f"it ended with exit code {done.returncode}: {lines[-1].strip()}")
        return done.stdout.strip().splitlines()[-1]


def is_quantized(parameter: str) -> bool:
    """Whether a parameter of a transformer becomes float8."""
    return _QUANTIZED.fullmatch(parameter) is not None


def quantize_fp8(
    path: Path,
    calls: Sequence[Path],
    held_out: tuple[Path, Tensor],
    modelopt: ModelOpt,
    work: Path,
) -> Quantization:
    """Put Q/DQ pairs into the bfloat16 transformer `path`, and measure what that costs.

    calls      recorded inputs to calibrate with
    held_out   inputs of another call, and its flow in float32
    work       an empty directory for copies in float32

    Raises WanstreamError; the file is then of no use.
    """
    (work / "reference").mkdir()
    reference = write_float32_reference(path, work / "reference")
    nodes = quantized_products(onnx.load(str(path), load_external_data=False).graph)
    version = modelopt.quantize(reference, list(nodes), calls, work / "quantized.onnx")
    scales = read_scales(work / "quantized.onnx", nodes)
    insert_pairs(path, scales)
    (work / "check").mkdir()
    flow = run_unoptimised(write_float32_reference(path, work / "check"), held_out[0])
    error, cosine = difference(flow, held_out[1])
    if not error <= _MOST_ERROR:
        raise ExportError(
            f"'{path}' differs in FP8 by {error:.0%} (relative RMS) from float32, which is more than "
            "rounding. The file is not used. Use --precision bf16."
        )
    return Quantization(
        tool=version,
        products=len(scales),
        calls=len(calls),
        relative_rms_error=round(error, 5),
        cosine=round(cosine, 6),
    )


def quantized_products(graph: onnx.GraphProto) -> dict[str, str]:
    """Names of the MatMul nodes to quantise, and the weight of each."""
    return {
        node.name: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and is_quantized(node.input[1])
    }


@dataclass(frozen=True, eq=False, slots=True)
class Scales:
    """Of one matrix product: value = float8 * scale. `weight` has one for each column, or one for all.

    ModelOpt 0.47 leaves room of 3.6 binary orders above the largest value that it has seen. It costs little
    in float8, whose precision is relative, and what calibration has missed is not cut off.
    """

    activation: Array
    weight: Array


def read_scales(path: Path, nodes: Mapping[str, str]) -> dict[str, Scales]:
    """What ModelOpt found, by name of the node. Raises ModelOptError unless exactly `nodes` are quantised."""
    graph = onnx.load(str(path)).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = node.attribute[0].t

    def scale(name: str) -> Array:
        return numpy_helper.to_array(constants[made_by[name].input[1]]).astype(np.float32)

    def dequantized(name: str) -> bool:
        return name in made_by and made_by[name].op_type == "DequantizeLinear"

    found = {node.name: node for node in graph.node if any(map(dequantized, node.input))}
    wrong = sorted(found.keys() ^ nodes.keys())
    if wrong:
        raise ModelOptError(
            f"ModelOpt quantised {len(found)} operations instead of {len(nodes)}; {wrong[0]} is one of those "
            "that differ. Another version of it may do better."
        )
    return {name: Scales(*(scale(x) for x in node.input)) for name, node in found.items()}


def insert_pairs(path: Path, scales: Mapping[str, Scales]) -> None:
    """Put the pairs into a file: float8 weights, and activations that are rounded to float8 and back."""
    model = onnx.load(str(path))
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    rounded: dict[str, str] = {}  # activations that several products share
    for node in graph.node:
        if node.name in scales:
            x, weight = node.input
            if x not in rounded:
                rounded[x] = f"{x}_fp8"
                scale = _constants(graph, f"{x}_fp8", scales[node.name].activation)
                nodes.append(helper.make_node("QuantizeLinear", [x, *scale], [f"{x}_q"], f"{x}_quantize"))
                nodes.append(
                    helper.make_node("DequantizeLinear", [f"{x}_q", *scale], [f"{x}_fp8"], f"{x}_dequantize")
                )
            nodes += _float8_weight(graph, weights[weight], scales[node.name].weight)
            node.input[:] = [rounded[x], f"{weight}_bf16"]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    save(model, path.parent)


def _float8_weight(graph: onnx.GraphProto, tensor: TensorProto, scale: Array) -> Iterator[NodeProto]:
    """Replace a matrix by float8 under its name, and give the node that turns it into bfloat16."""
    rounded = scale.astype(ml_dtypes.bfloat16).astype(np.float32)  # the scale as it will be
    values = np.clip(numpy_helper.to_array(tensor).astype(np.float32) / rounded, -_LARGEST, _LARGEST)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(ml_dtypes.float8_e4m3fn), tensor.name))
    constants = _constants(graph, f"{tensor.name}_bf16", scale)
    yield helper.make_node(
        "DequantizeLinear",
        [tensor.name, *constants],
        [f"{tensor.name}_bf16"],
        f"{tensor.name}_dequantize",
        axis=1 if scale.size > 1 else None,
    )


def _constants(graph: onnx.GraphProto, name: str, scale: Array) -> tuple[str, str]:
    """Scale and zero point of a pair, scalars where there is one for all."""
    shape = scale.shape if scale.size > 1 else ()
    values = (scale.reshape(shape).astype(ml_dtypes.bfloat16), np.zeros(shape, ml_dtypes.float8_e4m3fn))
    names = (f"{name}_scale", f"{name}_zero_point")
    graph.initializer.extend(numpy_helper.from_array(v, n) for v, n in zip(values, names, strict=True))
    return names


def run_unoptimised(path: Path, call: Path) -> Array:
    """The first output of a float32 graph with Q/DQ pairs, in ONNX Runtime.

    Its optimisations replace such pairs by operators that the CPU does not have.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    result: Array = session.run([session.get_outputs()[0].name], dict(np.load(call)))[0]
    return result


def difference(actual: Array, expected: Tensor) -> tuple[float, float]:
    """Root mean square of the difference, relative to that of `expected`; and the cosine between both."""
    a, b = torch.from_numpy(actual).double().flatten(), expected.double().flatten()
    return float((a - b).norm() / b.norm()), float(torch.nn.functional.cosine_similarity(a, b, dim=0))
