"""Layers that several graphs share: attention, linear, norms, rotary encoding.

Written so that a graph exports to plain ONNX (serving.md 9): no complex numbers, no float64, nothing
in place, and statistics and softmax in float32 whatever the type of the graph.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")

_cpu_kernels: ContextVar[bool] = ContextVar("cpu_kernels", default=False)
_fused: ContextVar[bool] = ContextVar("fused", default=False)
_branches: ContextVar["Mapping[nn.Module, Branch]"] = ContextVar("branches", default={})  # noqa: B039


@contextmanager
def exporting_for_cpu() -> Iterator[None]:
    """Graphs that are exported inside use operators that only ONNX Runtime has, on the CPU."""
    token = _cpu_kernels.set(True)
    try:
        yield
    finally:
        _cpu_kernels.reset(token)


@contextmanager
def fused_elements() -> Iterator[None]:
    """Inside, each function that is `fusible` runs as a kernel of its own, by torch.compile."""
    token = _fused.set(True)
    try:
        yield
    finally:
        _fused.reset(token)


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """By PyTorch's compiler, for the device of its arguments; it runs when it is called."""
    return torch.compile(function)


def fusible(function: Callable[P, R]) -> Callable[P, R]:
    """A function of elements, bound by memory: as one kernel it reads and writes each of them once.

    Compiled alone: a whole transformer is slower compiled than as it is (docs/gpu.md 1).
    """
    made: list[Callable[P, R]] = []

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _fused.get() or torch.compiler.is_exporting():
            return function(*args, **kwargs)
        if not made:
            made.append(compiled(function))
        return made[0](*args, **kwargs)

    return call


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q k^T * scale + bias) v, softmax in float32.

    q        [B, T, N, D]
    k, v     [B, S, N, D]
    bias     broadcast to [B, N, T, S], added to the logits: 0 attends, -1e4 hides a key; never -inf, which
             gives NaN where a whole row is hidden
    scale    default 1 / sqrt(D)
    returns  [B, T, N, D], type of q

    Outside of an export the same formula runs as PyTorch's fused kernel, which does not keep the logits
    (4 GB per layer for 480x832 with a window of 12 latent frames); exported for the CPU, as ONNX Runtime's.
    """
    if torch.compiler.is_exporting() and _cpu_kernels.get() and (bias is None or bias.shape[1:3] == (1, 1)):
        return _attention_of_onnx_runtime(q, k, v, bias, q.shape[-1] ** -0.5 if scale is None else scale)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, N, *, D]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if torch.compiler.is_exporting():
        logits = (q @ k.transpose(2, 3)).float() * scale
        y = torch.softmax(logits if bias is None else logits + bias, dim=-1).to(v.dtype) @ v
    else:
        mask = None if bias is None else bias.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y.transpose(1, 2)


def _attention_of_onnx_runtime(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """`attention` by one operator that does not keep the logits; bias [B, 1, 1, S].

    The operator does so only without a bias, so the bias goes in as one more element of each key, which the
    query multiplies by 1 / scale.
    """
    if bias is not None:
        q = torch.cat([q, torch.full_like(q[..., :1], 1 / scale)], dim=-1)
        k = torch.cat([k, bias.transpose(1, 3).expand(*k.shape[:3], 1)], dim=-1)
    y: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [tensor.flatten(2) for tensor in (q, k, v)],
        {"num_heads": q.shape[2], "scale": scale},
        dtype=v.dtype,
        shape=(*q.shape[:2], v.shape[2] * v.shape[3]),
        version=1,
    )
    return y.reshape(*q.shape[:2], *v.shape[2:])


@fusible
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary encoding: element pair (2j, 2j + 1) of a head is turned by the angle of column j.

    x [B, T, N, D], cos and sin float32 [T, D / 2] -> [B, T, N, D], type of x; computed in float32.
    """
    return _rotated(x, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for all heads
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


@fusible
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, see `RMSNorm`."""
    return _normed(x, weight, eps)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)
    return (x32 * scale).to(x.dtype) * weight


@fusible
def norm_and_rotate(
    x: Tensor, weight: Tensor, eps: float, heads: tuple[int, int], cos: Tensor, sin: Tensor
) -> Tensor:
    """`rms_norm` of all heads together, then `rotate` of each: [B, T, N * D] -> [B, T, N, D]."""
    return _rotated(_normed(x, weight, eps).unflatten(2, heads), cos, sin)


@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """What adapters add to a linear layer: x -> ((x @ down) * scale) @ up (lora.md 8.2).

    down [in, R], up [R, out] in the layer's type, scale float32 [R]
    """

    down: Tensor
    up: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[*, in] -> [*, out]"""
        return ((x @ self.down).float() * self.scale).to(x.dtype) @ self.up


@contextmanager
def beside(branches: Mapping[nn.Module, Branch]) -> Iterator[None]:
    """Inside, these `Linear` layers have branches: they are inputs of the graph, and reach all its layers."""
    token = _branches.set(branches)
    try:
        yield
    finally:
        _branches.reset(token)


class Linear(nn.Module):
    """x @ weight_t + bias, and what adapters add to it, see `beside`.

    The weight is stored transposed, because the ONNX exporter folds the transpose of an `nn.Linear` into an
    initializer without a name, and refit and LoRA find weights by name (serving.md 9, rule 5). In a
    checkpoint the same weight is called `weight` and has `checkpoint_shape`, by default [out, in];
    `export.checkpoints` converts. A convolution whose kernel equals its stride has [out, C, *kernel] there.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        checkpoint_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint_shape = checkpoint_shape or (out_features, in_features)
        self.weight_t = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [*, in] -> [*, out]"""
        y = x @ self.weight_t
        y = y if self.bias is None else y + self.bias
        branch = _branches.get().get(self)
        return y if branch is None else y + branch(x)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Statistics are float32; the result is cast to the type of x before the multiplication (wan.md 2.3).
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[*, dim] -> [*, dim]"""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm over the last dimension in float32, with or without weight and bias.

    Weight and bias stay float32 in a bf16 graph: ONNX does not allow mixed types here (serving.md 9, rule 4).
    """

    float32_parameters = True  # read by export.checkpoints.checkpoints

    def __init__(self, dim: int, eps: float, affine: bool = False) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.empty(dim, dtype=torch.float32)) if affine else None
        self.bias = nn.Parameter(torch.empty(dim, dtype=torch.float32)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """[*, dim] -> [*, dim]"""
        return _layer_normed(x, self.weight, self.bias, self.eps)

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """The norm * (1 + scale) + shift; x [B, T, dim], both [B, F, dim], one vector per latent frame."""
        return norm_and_modulate(x, self.weight, self.bias, self.eps, shift, scale)


def _layer_normed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)


@fusible
def norm_and_modulate(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, shift: Tensor, scale: Tensor
) -> Tensor:
    """See `LayerNorm.modulated`."""
    frames = _layer_normed(x, weight, bias, eps).reshape(*shift.shape[:2], -1, x.shape[2])
    return (frames * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).reshape(x.shape)
