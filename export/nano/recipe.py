"""The stages of the training in their order, each built from what the ones before left on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from export.graphs.text_encoder import TextEncoder
from export.graphs.vae import WanVae
from export.nano.films import FilmMaker, film_bank, finish_vae
from export.nano.stages import Training
from export.nano.text import TextTraining
from export.nano.transformer_training import TransformerTraining
from export.nano.vae_training import (
    CONFIG,
    LARGE_BATCH,
    LARGE_CLIPS,
    SMALL_BATCH,
    SMALL_CLIPS,
    ClipKind,
    VaeTraining,
)
from export.nano.world import CPU

SIZE: Final = (96, 96)  # height and width in pixels
STAGES: Final = ("vae", "text", "films", "transformer")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything: what a device can do in the time that one has for it.

    steps       of each stage
    clips       kinds of clips for the VAE, and pixels of a batch of them
    sentences   of a batch for the text encoder
    films       of a batch, of which the stage "films" makes as many as it has steps
    frames      latent frames of a batch for the transformer
    average     how much of the transformer's averaged parameters a step keeps
    """

    steps: dict[str, int]
    clips: Sequence[ClipKind]
    pixels: int
    sentences: int
    films: int
    frames: int
    average: float


PLANS: Final = {
    "cpu": Plan(
        steps={"vae": 750, "text": 750, "films": 240, "transformer": 5000},
        clips=SMALL_CLIPS,
        pixels=SMALL_BATCH,
        sentences=64,
        films=4,
        frames=36,
        average=0.995,
    ),
    "cuda": Plan(
        steps={"vae": 2600, "text": 1000, "films": 200, "transformer": 40_000},
        clips=LARGE_CLIPS,
        pixels=LARGE_BATCH,
        sentences=192,
        films=64,
        frames=1500,
        average=0.998,
    ),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """out: work directory; scale: factor of the number of steps of every stage."""

    out: Path
    seed: int
    scale: float = 1.0
    device: torch.device = CPU

    @property
    def plan(self) -> Plan:
        return PLANS[self.device.type]

    def path(self, stage: str) -> Path:
        return self.out / f"{stage}.pt"

    def steps(self, stage: str) -> int:
        return max(2, round(self.plan.steps[stage] * self.scale))

    def stage(self, name: str) -> Training:
        """A training at its beginning; `stages.run` brings it to where its checkpoint is."""
        plan, steps, device = self.plan, self.steps(name), self.device
        if name == "vae":
            return VaeTraining(self.seed, steps, kinds=plan.clips, pixels=plan.pixels, device=device)
        if name == "text":
            return TextTraining(self.seed, steps, plan.sentences, device)
        if name == "films":
            return FilmMaker(self.vae(), self.encoder(), SIZE, self.seed, steps, plan.films, device)
        films = [{k: v.to(device) for k, v in part.items()} for part in self._saved("films")["parts"]]
        return TransformerTraining(
            film_bank(films), SIZE, self.seed, steps, frames=plan.frames, average=plan.average, device=device
        )

    def finish(self, name: str) -> None:
        """What has to be done once after a stage."""
        if name == "vae" and not self._finished_vae.is_file():
            vae = WanVae(CONFIG)
            vae.load_state_dict(self._saved("vae")["vae"])
            torch.save(finish_vae(vae, SIZE, self.seed).state_dict(), self._finished_vae)

    def vae(self) -> WanVae:
        """The finished VAE, its latents' statistics those of Wan2.1."""
        vae = WanVae(CONFIG)
        vae.load_state_dict(torch.load(self._finished_vae))
        return vae

    def encoder(self) -> TextEncoder:
        training = TextTraining(self.seed, 1)
        training.encoder.load_state_dict(self._saved("text")["encoder"])
        return training.encoder.eval().requires_grad_(False)

    def average(self) -> dict[str, torch.Tensor]:
        """The transformer's averaged parameters by name."""
        average: dict[str, torch.Tensor] = self._saved("transformer")["average"]
        return average

    @property
    def _finished_vae(self) -> Path:
        return self.out / "vae_finished.pt"

    def _saved(self, stage: str) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(self.path(stage), weights_only=False, map_location="cpu")
        training: dict[str, Any] = state["training"]
        return training
