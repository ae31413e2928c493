"""Films of the world as latents: what the transformer learns from.

A film is four chunks of three latent frames. A `start` film is the beginning of a stream; another one is the
first chunk of a stream, as the sink keeps it, and three chunks out of its middle. In a part of them the
scene changes at a chunk's border and goes on from where it was, or colours of two scenes are mixed, the same
all the time or more and more, as in a transition. Some have no text that says anything: camera mode.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from export.graphs.text_encoder import TextEncoder
from export.graphs.vae import WanVae
from export.graphs.vae_graphs import encode
from export.nano.text import CAMERA, PromptBatch, say
from export.nano.vae_training import fold_statistics, training_form
from export.nano.world import CPU, STILL_FRAMES, Paint, Scene, States, draw, film, palette_of
from streaming.conditioning.blending import blend

CHUNK: Final = 3  # latent frames
CHUNKS: Final = 4
GROUP: Final = 4  # pixel frames of a latent frame
FIRST: Final = 1 + GROUP * (CHUNK - 1)  # pixel frames of a stream's first chunk
STATISTICS: Final = 8  # films of each kind that the latents' mean and std are taken from
assert FIRST == STILL_FRAMES


@dataclass(frozen=True, slots=True)
class Film:
    """A film by what is in it.

    scenes  of each chunk
    start   of a stream
    others  scenes whose colours are mixed into those of `scenes`, and mixes, how much, for each chunk
    silent  its text says nothing
    """

    scenes: tuple[Scene, ...]
    start: bool
    others: tuple[Scene, ...] = ()
    mixes: tuple[float, ...] = ()
    silent: bool = False

    @staticmethod
    def drawn(rng: random.Random, start: bool) -> "Film":
        scene = Scene.drawn(rng)
        scenes = [scene] * CHUNKS
        kind = rng.random()
        if kind < 0.35:
            change = rng.randrange(1, CHUNKS)
            scenes[change:] = [scene.changed(rng)] * (CHUNKS - change)
        elif kind < 0.6:
            other = Scene.drawn(rng)
            twin = Scene(scene.size, other.colour, scene.shape, scene.motion, other.background)
            level = rng.uniform(0.1, 0.9)
            step = rng.choice((0.0, 0.0, 0.125, 0.25, -0.25))
            mixes = tuple(min(1.0, max(0.0, level + i * step)) for i in range(CHUNKS))
            return Film(tuple(scenes), start, (twin,) * CHUNKS, mixes)
        return Film(tuple(scenes), start, silent=rng.random() < 0.2)

    def texts(self, rng: random.Random) -> list[tuple[str, str]]:
        """For each chunk the sentences of its scene and of the other one, the latter empty without a mix."""
        if self.silent:
            return [(rng.choice(CAMERA), "")] * CHUNKS
        if self.mixes:
            return [
                (scene.prompt, other.prompt) for scene, other in zip(self.scenes, self.others, strict=True)
            ]
        said: dict[Scene, str] = {}
        return [(said.setdefault(scene, say(scene, rng)), "") for scene in self.scenes]


def colours_of(films: Sequence[Film], chunk: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of shapes and backgrounds in a chunk, mixed where the film says so: [n, 3] each in [-1, 1]."""
    mix = torch.tensor([each.mixes[chunk] if each.mixes else 0.0 for each in films], device=device)[:, None]
    own = [each.scenes[chunk] for each in films]
    other = [each.others[chunk] if each.mixes else each.scenes[chunk] for each in films]
    first, second = (
        torch.lerp(palette_of(own, part, device), palette_of(other, part, device), mix)
        for part in ("colour", "background")
    )
    return first, second


def draw_films(
    films: Sequence[Film], states: States, size: tuple[int, int], chunks: range, paint: Paint = draw
) -> tuple[Tensor, States]:
    """Chunks of films of one kind, [n, T, 3, H, W] in [-1, 1], and the states after them.

    The first of several chunks begins with the single frame that the encoder takes first.
    """
    parts = []
    for chunk in chunks:
        starts = films[0].start and chunk == 0
        frames = FIRST if starts else GROUP * CHUNK + (chunk == chunks[0])
        colours = colours_of(films, chunk, states.place.device)
        pictures, states = film(
            [each.scenes[chunk] for each in films],
            states,
            frames,
            size,
            STILL_FRAMES if starts else 0,
            colours,
            paint,
        )
        parts.append(pictures)
    return torch.cat(parts, 1), states


@torch.no_grad()
def encode_pictures(vae: WanVae, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """z and mu of films [n, T, 3, H, W], float32 [n, F, 16, h, w]; the VAE in its `training_form`."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        x = pictures.transpose(1, 2).bfloat16().contiguous(memory_format=torch.channels_last_3d)
        z, mu, _ = encode(vae, x)
    return z.transpose(1, 2).float(), mu.transpose(1, 2).float()


@dataclass(frozen=True, eq=False, slots=True)
class FilmBank:
    """Films as the training reads them; the `start` ones come first.

    latents     [n, CHUNKS * CHUNK, 16, h, w], half; normalised, as the pipelines use them
    embeddings  [n, CHUNKS, rows, text_dim], half: what the text encoder says of each chunk's sentence
    places      [n, 2], where the shape is in the first chunk, x and y in pixels
    starts      number of `start` films
    """

    latents: Tensor
    embeddings: Tensor
    places: Tensor
    starts: int


def film_bank(parts: Sequence[Mapping[str, Tensor]]) -> FilmBank:
    """The bank of what a `FilmMaker` has saved as its `parts`."""
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    order = whole["start"].logical_not().sort(stable=True).indices
    used = int((whole["embeddings"] != 0).any(3).any(1).any(0).sum())
    return FilmBank(
        whole["latents"][order],
        whole["embeddings"][order][:, :, :used],
        whole["places"][order],
        int(whole["start"].sum()),
    )


class FilmMaker:
    """Adds films to a growing collection; saved and loaded like a training."""

    def __init__(
        self,
        vae: WanVae,
        encoder: TextEncoder,
        size: tuple[int, int],
        seed: int,
        steps: int,
        batch: int = 8,
        device: torch.device = CPU,
        paint: Paint = draw,
    ) -> None:
        self.paint = paint
        self.vae, self.encoder = training_form(vae).to(device), encoder.to(device)
        self.size, self.steps, self.batch, self.device = size, steps, batch, device
        self.rng = random.Random(seed)
        self.done = 0
        self.parts: list[dict[str, Tensor]] = []
        self._prompts = PromptBatch()

    def step(self) -> dict[str, Tensor]:
        start = self.done % 2 == 0
        films = [Film.drawn(self.rng, start) for _ in range(self.batch)]
        states = States.drawn(self.rng, self.batch, self.size, self.device)
        if start:
            begin = States(states.place, torch.zeros_like(states.age))
            latents = self._encode(films, begin, range(CHUNKS))
        else:
            sinks = [each if self.rng.random() < 0.7 else Film.drawn(self.rng, True) for each in films]
            first = [Film(each.scenes, True, each.others, each.mixes) for each in sinks]
            begin = States(states.place.roll(1, 0), torch.zeros_like(states.age))
            sink = self._encode(first, begin, range(1))
            latents = torch.cat([sink, self._encode(films, states, range(1, CHUNKS))[:, -3 * CHUNK :]], 1)
        self.parts.append(
            {
                "latents": latents.half(),
                "embeddings": self._embed(films).half(),
                "places": states.place,
                "start": torch.full((self.batch,), start, device=self.device),
            }
        )
        self.done += 1
        return {"std": latents.std()}

    def _encode(self, films: Sequence[Film], states: States, chunks: range) -> Tensor:
        return encode_pictures(self.vae, draw_films(films, states, self.size, chunks, self.paint)[0])[0]

    @torch.no_grad()
    def _embed(self, films: Sequence[Film]) -> Tensor:
        """[n, CHUNKS, text_len, text_dim]"""
        pairs = [pair for each in films for pair in each.texts(self.rng)]
        mixes = [mix for each in films for mix in (each.mixes or (0.0,) * CHUNKS)]
        ids, mask = (
            each.to(self.device) for each in self._prompts([text for pair in pairs for text in pair])
        )
        each = self.encoder(ids, mask)
        both = each.reshape(-1, 2, *each.shape[1:])
        rows = [
            blend([one[None], other[None]], [1 - mix, mix], self.rng.choice(("linear", "slerp")))[0]
            if pair[1]
            else one
            for pair, mix, (one, other) in zip(pairs, mixes, both, strict=True)
        ]
        return torch.stack(rows).reshape(len(films), CHUNKS, *rows[0].shape)

    def bank(self) -> FilmBank:
        """All films so far."""
        return film_bank(self.parts)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": self.parts, "done": self.done, "rng": self.rng.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.parts = [{k: v.to(self.device) for k, v in part.items()} for part in state["parts"]]
        self.done = state["done"]
        self.rng.setstate(state["rng"])


@torch.no_grad()
def finish_vae(vae: WanVae, size: tuple[int, int], seed: int) -> WanVae:
    """Give the VAE's latents of films the mean and std of Wan2.1: normalised, they are standard."""
    rng = random.Random(seed)
    training_form(vae)
    raw = []
    for start in (True, False):
        films = [Film.drawn(rng, start) for _ in range(STATISTICS)]
        states = States.drawn(rng, STATISTICS, size)
        chunks = range(CHUNKS) if start else range(1, CHUNKS)
        mu = encode_pictures(vae, draw_films(films, states, size, chunks)[0])[1]
        raw.append(mu.transpose(1, 2).transpose(0, 1).flatten(1))
    whole = torch.cat(raw, 1)
    fold_statistics(vae, whole.mean(1), whole.std(1))
    return vae
