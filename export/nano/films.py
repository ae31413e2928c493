"""Films of the world as latents: what the transformer learns from.

A film is three chunks of three latent frames. `start` films are the beginning of a stream; the others are
a piece out of the middle. In a part of them the scene changes at a chunk's border and goes on from where
it was.
"""

import random
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from export.graphs.vae import WanVae
from export.graphs.vae_graphs import encode
from export.nano.vae_training import fold_statistics, training_form
from export.nano.world import PALETTE, STILL_FRAMES, Rgb, Scene, State, film

CHUNK: Final = 3  # latent frames
CHUNKS: Final = 3
GROUP: Final = 4  # pixel frames of a latent frame


@dataclass(frozen=True, slots=True)
class Film:
    """A film by what is in it. `mix`: weight of `others`, whose colours are mixed into those of `scenes`."""

    scenes: tuple[Scene, ...]  # of each chunk
    begin: State
    start: bool  # of a stream
    others: tuple[Scene, ...] = ()
    mix: float = 0.0

    def colours(self, chunk: int) -> tuple[Rgb, Rgb]:
        """Of shape and background, 0 to 255."""
        scene = self.scenes[chunk]
        own = PALETTE[scene.colour], PALETTE[scene.background]
        if not self.mix:
            return own
        other = PALETTE[self.others[chunk].colour], PALETTE[self.others[chunk].background]
        first, second = (
            tuple((1 - self.mix) * a + self.mix * b for a, b in zip(one, two, strict=True))
            for one, two in zip(own, other, strict=True)
        )
        return first, second  # type: ignore[return-value]

    def draw(self, size: tuple[int, int]) -> Tensor:
        """[T, 3, H, W] in [-1, 1]: with the first frame for the encoder's single first one."""
        state, parts = self.begin, []
        for chunk, scene in enumerate(self.scenes):
            first = chunk == 0
            frames = GROUP * CHUNK + (0 if not first else 1 - GROUP if self.start else 1)
            pictures, state = film(
                scene, state, frames, size, STILL_FRAMES if first and self.start else 0, self.colours(chunk)
            )
            parts.append(pictures)
        return torch.cat(parts)


def random_film(rng: random.Random, size: tuple[int, int], start: bool) -> Film:
    scene = Scene.drawn(rng)
    scenes = [scene] * CHUNKS
    others: tuple[Scene, ...] = ()
    mix = 0.0
    kind = rng.random()
    if kind < 0.4:
        scenes = [scene if chunk < 2 else scene.changed(rng) for chunk in range(CHUNKS)]
        if rng.random() < 0.5:
            scenes[1] = scenes[2]
    elif kind < 0.55:
        other = Scene.drawn(rng)
        twin = Scene(scene.size, other.colour, scene.shape, scene.motion, other.background)
        others, mix = (twin,) * CHUNKS, rng.uniform(0.2, 0.8)
    age = 0 if start else rng.randrange(32)
    begin = State(rng.uniform(0, size[1]), rng.uniform(0, size[0]), age)
    return Film(tuple(scenes), begin, start, others, mix)


@torch.no_grad()
def encode_films(vae: WanVae, films: list[Film], size: tuple[int, int]) -> Tensor:
    """Latents as the pipelines use them: [n, CHUNKS * CHUNK, 16, h, w]."""
    latents = []
    training_form(vae)
    for each in films:
        pixels = each.draw(size).transpose(0, 1).unsqueeze(0)
        with torch.autocast("cpu", torch.bfloat16):
            x = pixels.bfloat16().contiguous(memory_format=torch.channels_last_3d)
            z = encode(vae, x)[0]
        latents.append(z[0].transpose(0, 1)[-CHUNKS * CHUNK :].float())
    return torch.stack(latents)


class FilmMaker:
    """Adds films to a growing collection; saved and loaded like a training."""

    def __init__(self, vae: WanVae, size: tuple[int, int], seed: int, steps: int, batch: int = 5) -> None:
        self.vae, self.size, self.steps, self.batch = vae, size, steps, batch
        self.rng = random.Random(seed)
        self.films: list[Film] = []
        self.latents = torch.empty(0)
        self.done = 0

    def step(self) -> dict[str, float]:
        new = [random_film(self.rng, self.size, start=i % 5 < 3) for i in range(self.batch)]
        latents = encode_films(self.vae, new, self.size).half()
        self.films += new
        self.latents = latents if not len(self.latents) else torch.cat([self.latents, latents])
        self.done += 1
        return {"films": float(len(self.films)), "std": float(latents.float().std())}

    def state_dict(self) -> dict[str, Any]:
        return {"films": self.films, "latents": self.latents, "done": self.done, "rng": self.rng.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.films, self.latents = state["films"], state["latents"]
        self.done = state["done"]
        self.rng.setstate(state["rng"])


@torch.no_grad()
def finish_vae(vae: WanVae, size: tuple[int, int], seed: int, count: int = 16) -> WanVae:
    """Give the VAE's latents of films the mean and std of Wan2.1: normalised, they are standard."""
    rng = random.Random(seed)
    training_form(vae)
    raw = []
    for i in range(count):
        pixels = random_film(rng, size, i % 2 == 0).draw(size).transpose(0, 1).unsqueeze(0)
        with torch.autocast("cpu", torch.bfloat16):
            x = pixels.bfloat16().contiguous(memory_format=torch.channels_last_3d)
            raw.append(encode(vae, x)[1].float())
    mu = torch.cat([each.transpose(0, 1).flatten(1) for each in raw], 1)
    fold_statistics(vae, mu.mean(1), mu.std(1))
    return vae
