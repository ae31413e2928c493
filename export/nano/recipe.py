"""The stages of the training in their order, each built from what the ones before left on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from export.graphs.text_encoder import TextEncoder
from export.graphs.vae import WanVae
from export.nano.films import FilmMaker, finish_vae
from export.nano.stages import Training
from export.nano.text import TextTraining
from export.nano.transformer_training import TransformerTraining
from export.nano.vae_training import CONFIG, VaeTraining

SIZE: Final = (96, 96)  # height and width in pixels
STAGES: Final = ("vae", "text", "films", "transformer")
STEPS: Final = {"vae": 750, "text": 750, "films": 192, "transformer": 5000}


@dataclass(frozen=True, slots=True)
class Recipe:
    """out: work directory; scale: factor of the number of steps of every stage."""

    out: Path
    seed: int
    scale: float = 1.0

    def path(self, stage: str) -> Path:
        return self.out / f"{stage}.pt"

    def steps(self, stage: str) -> int:
        return max(2, round(STEPS[stage] * self.scale))

    def stage(self, name: str) -> Training:
        """A training at its beginning; `stages.run` brings it to where its checkpoint is."""
        if name == "vae":
            return VaeTraining(self.seed, self.steps(name))
        if name == "text":
            return TextTraining(self.seed, self.steps(name))
        if name == "films":
            return FilmMaker(self.vae(), SIZE, self.seed, self.steps(name))
        films = self._saved("films")
        return TransformerTraining(
            self.encoder(), films["films"], films["latents"], SIZE, self.seed, self.steps(name)
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
        state: dict[str, Any] = torch.load(self.path(stage), weights_only=False)["training"]
        return state
