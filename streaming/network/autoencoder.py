"""A stream through the autoencoder's engines; the caches that connect the calls are the caller's to keep."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from streaming.engines.engine import Engine, VaeEngines
from streaming.network.inputs import NEW_VAE_CACHE, VAE_CACHE, numbered, stem_of

Caches = tuple[Tensor, ...]
Step = Callable[[str], AbstractContextManager[None]]  # surrounds an engine call of this name


def encode(
    vae: VaeEngines,
    frames: Tensor,
    caches: Caches | None,
    step: Step,
    *,
    normalise: bool = True,
    rest: bool = False,
) -> tuple[Tensor, Caches]:
    """Encode the next frames of a stream; without caches, its first ones.

    frames     [B, 3, T, H, W] in [-1, 1]
    normalise  (mu - mean) / std instead of the encoder's mean as it comes
    rest       frames beyond the last full group give no latents, but are remembered; engines that take no
               more than a number of groups at once drop them, as all do otherwise
    returns    latents [B, F, C, h, w], and the caches for the next call
    Raises WanstreamError when T is too small for one latent frame.
    """
    name = "z" if normalise else "mu"
    cut = vae.groups.cut(frames.shape[2], start=caches is None)
    frames = torch.cat([frames, *[frames[:, :, -1:]] * cut.repeats], dim=2)
    latents = []
    if caches is None:
        with step("encode"):
            z, caches = _call(vae.encoder_first, "frames", frames[:, :, : cut.first], (), name)
        latents.append(z)
    whole = rest and vae.groups.at_once is None
    later = frames[:, :, cut.first :] if whole else frames[:, :, cut.first : cut.first + cut.later]
    for part in torch.split(later, vae.groups.at_once or later.shape[2], dim=2) if cut.later else ():
        with step("encode"):
            z, caches = _call(vae.encoder_next, "frames", part, caches, name)
        latents.append(z)
    return torch.cat(latents, dim=2).transpose(1, 2), caches


def encode_alone(vae: VaeEngines, picture: Tensor, step: Step, *, normalise: bool = True) -> Tensor:
    """Encode one picture as a video of its own; no stream is touched.

    picture [B, 3, 1, H, W] in [-1, 1] -> latents [B, 1, C, h, w]
    """
    name = "z" if normalise else "mu"
    cut = vae.groups.cut(1, start=True)
    frames = torch.cat([picture] * (1 + cut.repeats), dim=2)
    with step("encode"):
        return vae.encoder_first.run({"frames": frames}, [name])[name].transpose(1, 2)


def decode(vae: VaeEngines, latents: Tensor, caches: Caches | None, step: Step) -> tuple[Tensor, Caches]:
    """Decode the next latent frames of a stream; without caches exactly one, its first.

    latents [B, F, C, h, w] -> frames [B, 3, T, H, W] in [-1, 1], and the caches for the next call
    """
    engine = vae.decoder_first if caches is None else vae.decoder_next
    with step("decode"):
        return _call(engine, "z", latents.transpose(1, 2), caches or (), "frames")


def _call(
    engine: Engine, name: str, value: Tensor, caches: Sequence[Tensor], output: str
) -> tuple[Tensor, Caches]:
    new_caches = [name for name in engine.outputs if stem_of(name) == NEW_VAE_CACHE]
    names = numbered(VAE_CACHE, len(caches))
    inputs = {name: value.contiguous()} | dict(zip(names, caches, strict=True))
    results = engine.run(inputs, [output, *new_caches])
    return results[output], tuple(results[name] for name in new_caches)
