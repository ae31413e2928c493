"""What all autoencoders share: the four exported graphs, and a stream of calls of them.

Engine layout: frames [B, 3, T, H, W] in [-1, 1]; latents [B, z_dim, F, h, w]. `z` is a latent as the
pipelines use it, (mu - mean) / std; `mu` is the encoder's mean as it comes (for `tae` the two are equal).

A stream is one call of a `first` graph, which has no caches to read, and then calls of the `next` graph.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from export.graphs.signature import Signature, Values, on_meta
from export.graphs.vae_layers import CacheTape
from streaming.engines.manifest import Form
from streaming.network.inputs import NEW_VAE_CACHE, VAE_CACHE, TensorSpec, numbered
from streaming.network.video import FrameGroups

WAN_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def known_fields(config_class: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a JSON object that a frozen config class has; lists become tuples."""
    names = {field.name for field in fields(config_class)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in names}


class LatentScale(nn.Module):
    """Per-channel mean and standard deviation of the latents; constants, so not part of a checkpoint.

    Computed in float32, result in the type of the argument.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            constant = torch.tensor(
                values, dtype=torch.float32, device="cpu"
            )  # also when weights are on meta
            self.register_buffer(name, constant.view(1, -1, 1, 1, 1), persistent=False)

    def normalize(self, mu: Tensor) -> Tensor:
        return ((mu.float() - self.mean) / self.std).to(mu.dtype)

    def denormalize(self, z: Tensor) -> Tensor:
        return (z.float() * self.std + self.mean).to(z.dtype)


class Autoencoder(nn.Module, ABC):
    """Weights of an autoencoder under their checkpoint names, and what its graphs are made of."""

    z_dim: int
    spatial_factor: int  # pixels per latent position, in height and in width
    groups: FrameGroups  # how pixel frames are cut into calls of the encoder
    scale: LatentScale | None  # None: latents are used as they come

    @abstractmethod
    def encode_step(self, form: Form, first: bool) -> nn.Module:
        """Module (frames, tape) -> mu that has this one's weights and holds no others.

        In the form "cpu" it is for one latent frame, and what it computes may depend on `first`.
        """

    @abstractmethod
    def decode_step(self, form: Form, first: bool) -> nn.Module:
        """Module (latents before normalisation, tape) -> frames, not clamped; as `encode_step`."""


class AutoencoderGraph(nn.Module, ABC):
    """One call of one half of an autoencoder, as it is exported."""

    def __init__(
        self, vae: Autoencoder, make_step: Callable[[Form, bool], nn.Module], first: bool, form: Form
    ) -> None:
        super().__init__()
        self.first = first
        self.one_frame = first or form == "cpu"  # in one call, of latents
        self.step = make_step(form, first)
        # Makes the caches; a tuple, because a module would be a part of this one.
        self._first_step = (self.step if first or form != "cpu" else make_step(form, True),)
        self.scale = vae.scale
        self._vae_shape = (vae.z_dim, vae.spatial_factor, vae.groups)
        self.train(vae.training)

    @abstractmethod
    def signature(self, height: int, width: int) -> Signature:
        """Names and shapes for pictures of height x width pixels, batch 1.

        A `next` graph has the dynamic axes "F", latent frames, and "T" = F * temporal factor, pixel frames;
        in the form "cpu" they are 1 and the temporal factor.
        """

    def _with_caches(
        self,
        first_input: tuple[int, ...],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Signature:
        tape = CacheTape(None)
        dtype = next(self.step.parameters()).dtype
        on_meta(self._first_step[0], torch.empty(first_input, dtype=dtype, device="meta"), tape)
        caches = () if self.first else _specs(VAE_CACHE, tape.new, group="cache")
        return Signature(inputs + caches, outputs + _specs(NEW_VAE_CACHE, tape.new))


def _specs(stem: str, tensors: Sequence[Tensor], group: str | None = None) -> tuple[TensorSpec, ...]:
    names = numbered(stem, len(tensors))
    return tuple(TensorSpec(n, tuple(t.shape), group=group) for n, t in zip(names, tensors, strict=True))


class EncoderGraph(AutoencoderGraph):
    """Frames and, unless `first`, caches in; z, mu and new caches out."""

    def __init__(self, vae: Autoencoder, first: bool, form: Form = "portable") -> None:
        super().__init__(vae, vae.encode_step, first, form)

    def forward(self, frames: Tensor, cache: Values = ()) -> tuple[Tensor, ...]:
        """
        frames   [B, 3, T, H, W]          in [-1, 1]; T = groups.first, in a `next` graph F * groups.later
        cache                             as `signature` says
        returns  z, mu [B, z_dim, F, h, w] and the new caches
        """
        tape = CacheTape(None if self.first else cache)
        mu: Tensor = self.step(frames, tape)
        z = mu if self.scale is None else self.scale.normalize(mu)
        return (z, mu, *tape.new)

    def signature(self, height: int, width: int) -> Signature:
        z_dim, space, groups = self._vae_shape
        T: int | str = groups.first if self.first else groups.later if self.one_frame else "T"
        F: int | str = 1 if self.one_frame else "F"
        latent = (1, z_dim, F, height // space, width // space)
        return self._with_caches(
            (1, 3, groups.first, height, width),
            (TensorSpec("frames", (1, 3, T, height, width)),),
            (TensorSpec("z", latent), TensorSpec("mu", latent)),
        )


class DecoderGraph(AutoencoderGraph):
    """z and, unless `first`, caches in; frames and new caches out."""

    def __init__(self, vae: Autoencoder, first: bool, clamp: bool = True, form: Form = "portable") -> None:
        super().__init__(vae, vae.decode_step, first, form)
        self.clamp = clamp

    def forward(self, z: Tensor, cache: Values = ()) -> tuple[Tensor, ...]:
        """
        z        [B, z_dim, F, h, w]      F = 1 in a `first` graph
        cache                             as `signature` says
        returns  frames [B, 3, T, H, W]   in [-1, 1], T = 1 in a `first` graph; and the new caches
        """
        tape = CacheTape(None if self.first else cache)
        frames: Tensor = self.step(z if self.scale is None else self.scale.denormalize(z), tape)
        return (frames.clamp(-1, 1) if self.clamp else frames, *tape.new)

    def signature(self, height: int, width: int) -> Signature:
        z_dim, space, groups = self._vae_shape
        T: int | str = 1 if self.first else groups.later if self.one_frame else "T"
        F: int | str = 1 if self.one_frame else "F"
        h, w = height // space, width // space
        return self._with_caches(
            (1, z_dim, 1, h, w),
            (TensorSpec("z", (1, z_dim, F, h, w)),),
            (TensorSpec("frames", (1, 3, T, height, width)),),
        )


Prepare = Callable[[AutoencoderGraph], Callable[..., Sequence[Tensor]]]


def as_module(graph: AutoencoderGraph) -> AutoencoderGraph:
    """Run a graph in PyTorch."""
    return graph


def encode(
    vae: Autoencoder, frames: Tensor, caches: Values | None = None, prepare: Prepare = as_module
) -> tuple[Tensor, Tensor, Values]:
    """Encode the next frames of a stream; without caches, the first ones (or a whole clip).

    frames [B, 3, T, H, W] in [-1, 1] -> z, mu [B, z_dim, F, h, w], and the caches for the next call.
    prepare: where the graphs run
    Raises WanstreamError when T is too small for one latent frame.
    """
    cut = vae.groups.cut(frames.shape[2], start=caches is None)
    frames = torch.cat([frames, *[frames[:, :, -1:]] * cut.repeats], dim=2)
    results: list[Sequence[Tensor]] = []
    if caches is None:
        results.append(prepare(EncoderGraph(vae, first=True))(frames[:, :, : cut.first]))
        caches = tuple(results[-1][2:])
    if cut.later:
        later = frames[:, :, cut.first :][:, :, : cut.later]
        results.append(prepare(EncoderGraph(vae, first=False))(later, caches))
        caches = tuple(results[-1][2:])
    z, mu = (torch.cat([result[i] for result in results], dim=2) for i in range(2))
    return z, mu, caches


def decode(
    vae: Autoencoder,
    z: Tensor,
    caches: Values | None = None,
    clamp: bool = True,
    prepare: Prepare = as_module,
) -> tuple[Tensor, Values]:
    """Decode the next latents of a stream; without caches, the first ones (or a whole clip).

    z [B, z_dim, F, h, w] -> frames [B, 3, T, H, W], and the caches for the next call.
    prepare: where the graphs run
    """
    frames: list[Tensor] = []
    if caches is None:
        picture, *rest = prepare(DecoderGraph(vae, first=True, clamp=clamp))(z[:, :, :1])
        frames.append(picture)
        caches = tuple(rest)
        z = z[:, :, 1:]
    if z.shape[2] > 0:
        clip, *rest = prepare(DecoderGraph(vae, first=False, clamp=clamp))(z, caches)
        frames.append(clip)
        caches = tuple(rest)
    return torch.cat(frames, dim=2), caches
