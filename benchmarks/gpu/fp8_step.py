"""Float8 linear layers: how much faster is a denoising step, and how wrong?

    python -m benchmarks.gpu.fp8_step

Every large linear layer of the transformer's blocks as `torch._scaled_mm` on float8 (e4m3), one scale per
tensor, the activations' taken from each call. Needs compute capability 8.9 or more.
"""

import torch
from torch import Tensor, nn

from benchmarks.block_graphs import Workload, graphs, random_inputs
from benchmarks.blocks import prepared
from benchmarks.gpu.common import Result, Row, cosine, leave, median_ms, parse, relative_rms
from benchmarks.random_weights import fill_random
from export.graphs.layers import Linear

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
SMALLEST_LAYER = 1 << 20  # weights; what is outside of the blocks stays as it is
CAPABILITY = (8, 9)


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse(__doc__)
    device = torch.device(options.device)
    if device.type == "cuda" and torch.cuda.get_device_capability() < CAPABILITY:
        leave(f"float8 needs compute capability {CAPABILITY}; this GPU has less.")
    size, pictures = ("tiny", ((32, 48),)) if options.tiny else ("1.3B", ((480, 832), (320, 576)))
    graph = next(g for g in graphs() if g.name == "transformer" and g.size == size)
    result = Result("fp8-step", options, precision="float8_e4m3fn, bfloat16")
    with torch.inference_mode():
        for height, width in pictures:
            work = Workload(height, width)
            with torch.device("meta"):
                module = graph.build(graph.layers)
                signature = graph.signature(module, work)
            fill_random(module, torch.bfloat16, device)
            inputs = random_inputs(signature, graph.axes(work), torch.bfloat16, device)
            arguments = signature.arguments(inputs)
            modes = ("eager", "compile", "compile+graph") if device.type == "cuda" else ("eager",)
            reference = module(**arguments)[0].clone()
            plain = {mode: median_ms(prepared(module, arguments, mode), device) for mode in modes}
            count = replace_linears(module.get_submodule("blocks"), 1 if options.tiny else SMALLEST_LAYER)
            found = module(**arguments)[0]
            for mode in modes:
                row: Row = {"size": size, "picture": f"{width}x{height}", "mode": mode, "layers": count}
                row |= {
                    "bf16_ms": plain[mode],
                    "fp8_ms": median_ms(prepared(module, arguments, mode), device),
                }
                row |= {"cosine": cosine(found, reference), "relative_rms": relative_rms(found, reference)}
                result.add(row)
    result.finish()


class Float8Linear(nn.Module):
    """x @ weight_t + bias with both factors in float8; sums in float32."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.weight, self.weight_scale = to_float8(linear.weight_t.t().contiguous())  # [out, in]
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[*, in] -> [*, out], type of x"""
        rows, scale = to_float8(x.flatten(0, -2))
        if x.is_cuda:
            y = torch._scaled_mm(
                rows,
                self.weight.t(),
                scale,
                self.weight_scale,
                bias=self.bias,
                out_dtype=x.dtype,
                use_fast_accum=True,
            )
        else:  # the same numbers, slowly
            y = (rows.float() @ self.weight.float().t() * scale * self.weight_scale).to(x.dtype)
            y = y if self.bias is None else y + self.bias
        return y.unflatten(0, x.shape[:-1])


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor in float8, and the scale by which to multiply it, float32."""
    scale = (x.abs().amax().float() / LARGEST).clamp(min=1e-12)
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale


def replace_linears(module: nn.Module, smallest: int) -> int:
    """Replace the linear layers of at least so many weights; their number."""
    count = 0
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, Linear) and child.weight_t.numel() >= smallest:
                setattr(owner, name, Float8Linear(child))
                count += 1
    return count


if __name__ == "__main__":
    main()
