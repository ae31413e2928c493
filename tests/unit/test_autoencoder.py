"""A stream through the autoencoder's engines, whatever number of frames one call of them takes."""

from contextlib import nullcontext
from dataclasses import replace

import torch

from streaming.engines.engine import VaeEngines
from streaming.network.autoencoder import Caches, encode
from tests.tiny_pipeline import HEIGHT, WIDTH, Hook, tiny_pipeline


def encoded(vae: VaeEngines) -> list[torch.Tensor]:
    """Latents of the chunks of one stream: its first frames, then one and three latent frames."""
    clip = torch.rand(1, 3, 25, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    caches: Caches | None = None
    results = []
    for frames in clip.split([9, 4, 12], dim=2):
        latents, caches = encode(vae, frames, caches, lambda name: nullcontext())
        results.append(latents)
    return results


def test_an_engine_of_one_latent_frame_is_called_once_for_each() -> None:
    hook = Hook()
    vae = tiny_pipeline(hook).model.engines.vae
    whole = encoded(vae)
    calls, hook.calls = hook.calls, 0

    one_by_one = encoded(replace(vae, groups=replace(vae.groups, at_once=vae.groups.later)))

    torch.testing.assert_close(one_by_one, whole, atol=1e-4, rtol=1e-4)
    assert [latents.shape[1] for latents in one_by_one] == [3, 1, 3]
    assert (calls, hook.calls) == (4, 7)
