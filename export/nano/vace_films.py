"""Films with a control video or a reference picture, as latents: what a VACE branch learns from (vace.md 4).

The shape moves as the control says, whatever the prompt does; a reference shows the object where it shall be.
"""

import random
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from export.graphs.text_encoder import TextEncoder
from export.graphs.vae import WanVae
from export.nano.films import CHUNK, FIRST, encode_pictures
from export.nano.text import CAMERA, PromptBatch, say
from export.nano.vae_training import training_form
from export.nano.world import SHAPES, Scene, draw, palette_of
from streaming.network.video import resample_indices

KINDS: Final = ("first", "later", "reference")
STEPS: Final = {"first": 40, "later": 24, "reference": 44}  # batches of each kind
FRAMES: Final = 12  # that a chunk takes of a control video; the first one takes them as 13
_RADII: Final = (11.0, 25.0)  # pixels
_FASTEST: Final = 2.5  # pixels per frame, in x and in y


class VaceFilmMaker:
    """Adds films to a growing collection; saved and loaded like a training.

    A batch of a kind has `latents` [n, F, 16, h, w], of a chunk, or of two in kind "later"; `context`
    [n, F', 32, h, w], inactive and reactive of the last chunk, of a reference one frame; `embeddings`.
    """

    def __init__(
        self,
        vae: WanVae,
        encoder: TextEncoder,
        size: tuple[int, int],
        seed: int,
        scale: float = 1.0,
        batch: int = 4,
    ) -> None:
        """scale: factor of the number of films."""
        self.vae, self.encoder, self.size, self.batch = training_form(vae), encoder, size, batch
        self._order = [kind for kind in KINDS for _ in range(max(1, round(STEPS[kind] * scale)))]
        self.steps, self.done = len(self._order), 0
        self.rng = random.Random(seed)
        self.parts: list[tuple[str, dict[str, Tensor]]] = []
        self._prompts = PromptBatch()

    def step(self) -> dict[str, Tensor]:
        kind = self._order[self.done]
        part = self._references() if kind == "reference" else self._controlled(later=kind == "later")
        self.parts.append((kind, {name: tensor.half() for name, tensor in part.items()}))
        self.done += 1
        return {kind: part["latents"].std()}

    def bank(self) -> dict[str, dict[str, Tensor]]:
        """All films so far, by kind."""
        return {
            kind: {
                name: torch.cat([part[name] for each, part in self.parts if each == kind]).float()
                for name in ("latents", "context", "embeddings")
            }
            for kind in KINDS
        }

    def _controlled(self, *, later: bool) -> dict[str, Tensor]:
        rng, n = self.rng, self.batch
        scenes = [Scene.drawn(rng) for _ in range(n)]
        shown = [each.shape if rng.random() < 0.7 else rng.choice(SHAPES) for each in scenes]
        first = torch.tensor(resample_indices(FRAMES, FRAMES + 1))
        times = torch.cat([first, torch.arange(FRAMES, 2 * FRAMES)]) if later else first[:FIRST]
        states = self._motions(n, times.float())
        seen = [i for i in range(len(times)) if not FIRST <= i <= FRAMES]  # the first chunk makes no more
        colours = palette_of(scenes, "colour"), palette_of(scenes, "background")
        pictures = self._draw(shown, states, colours)[:, seen]
        z = encode_pictures(self.vae, pictures)[0]
        control = torch.cat([self._control(name, states, i) for i, name in enumerate(shown)])
        grey = torch.zeros_like(control[:, :1])
        if later:
            between = grey.expand(-1, FRAMES, -1, -1, -1)
            clip = torch.cat([control[:, : FRAMES + 1], between, control[:, FRAMES + 1 :]], dim=1)
            both = encode_pictures(self.vae, clip)[0][:, CHUNK + 1 :]
            inactive, reactive = both[:, :CHUNK], both[:, CHUNK:]
        else:
            inactive = encode_pictures(self.vae, grey[:1].expand(-1, FIRST, -1, -1, -1))[0].expand(
                n, -1, -1, -1, -1
            )
            reactive = encode_pictures(self.vae, control)[0]
        texts = [say(each, rng) for each in scenes]
        context = torch.cat([inactive, reactive], dim=2)
        return {"latents": z, "context": context, "embeddings": self._embed(texts)}

    def _references(self) -> dict[str, Tensor]:
        rng, n = self.rng, self.batch
        scenes = [Scene.drawn(rng) for _ in range(n)]
        states = self._motions(n, torch.zeros(FIRST), still=True)
        colours = palette_of(scenes, "colour"), palette_of(scenes, "background")
        pictures = self._draw([each.shape for each in scenes], states, colours)
        z = encode_pictures(self.vae, pictures)[0]
        reference = encode_pictures(self.vae, pictures[:, :1])[0]
        texts = [_open_text(each, rng) for each in scenes]
        context = torch.cat([reference, torch.zeros_like(reference)], dim=2)
        return {"latents": z, "context": context, "embeddings": self._embed(texts)}

    def _motions(self, n: int, times: Tensor, *, still: bool = False) -> tuple[Tensor, Tensor]:
        """Centres [n, T, 2] and radii [n, T], pixels."""
        rng, (height, width) = self.rng, self.size
        places = torch.tensor([[rng.uniform(0, width), rng.uniform(0, height)] for _ in range(n)])
        speeds = [
            [0.0, 0.0]
            if still or rng.random() < 0.25
            else [rng.uniform(-_FASTEST, _FASTEST) for _ in range(2)]
            for _ in range(n)
        ]
        radii = torch.tensor([rng.uniform(*_RADII) * height / 96 for _ in range(n)])
        centres = places[:, None] + torch.tensor(speeds)[:, None] * times[None, :, None]
        return centres, radii[:, None].expand(-1, len(times))

    def _draw(
        self, shapes: Sequence[str], states: tuple[Tensor, Tensor], colours: tuple[Tensor, Tensor]
    ) -> Tensor:
        centres, radii = states
        n, frames = radii.shape
        pictures = draw(
            torch.tensor([SHAPES.index(name) for name in shapes]).repeat_interleave(frames),
            centres.flatten(0, 1),
            radii.flatten(),
            colours[0].repeat_interleave(frames, 0),
            colours[1].repeat_interleave(frames, 0),
            self.size,
        )
        return pictures.reshape(n, frames, *pictures.shape[1:])

    def _control(self, shape: str, states: tuple[Tensor, Tensor], i: int) -> Tensor:
        """The control video of film i: [1, T, 3, H, W]."""
        centres, radii = states[0][i : i + 1], states[1][i : i + 1]
        dark = self.rng.random() < 0.4
        if self.rng.random() < 0.5:
            return silhouette(self._cover(shape, centres, radii), dark=dark)
        inner = self._cover(shape, centres, radii - self.rng.uniform(2.0, 4.0))
        return silhouette(self._cover(shape, centres, radii) - inner, dark=dark)

    def _cover(self, shape: str, centres: Tensor, radii: Tensor) -> Tensor:
        ones = torch.ones(1, 3)
        return (self._draw([shape], (centres, radii), (ones, -ones)) + 1) / 2

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        """[n, text_len, text_dim]"""
        ids, mask = self._prompts(list(texts))
        rows: Tensor = self.encoder(ids, mask)
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {"parts": self.parts, "done": self.done, "rng": self.rng.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.parts, self.done = state["parts"], state["done"]
        self.rng.setstate(state["rng"])


def silhouette(cover: Tensor, *, dark: bool) -> Tensor:
    """White where `cover` is 1, on grey, or `dark`, on black; values in [-1, 1]."""
    ground = -1.0 if dark else 0.0
    return ground + (1 - ground) * cover


def _open_text(scene: Scene, rng: random.Random) -> str:
    """A prompt that leaves most of the scene to the reference; what it says is right."""
    if rng.random() < 0.6:
        return rng.choice(CAMERA)
    return rng.choice(
        (
            f"a {scene.shape}",
            f"a {scene.shape} stays still",
            f"a {scene.colour} {scene.shape}",
            f"a {scene.background} background",
            f"a {scene.colour} {scene.shape} on a {scene.background} background",
        )
    )
