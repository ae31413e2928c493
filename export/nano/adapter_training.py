"""Training of an adapter for the nano transformer: low-rank changes of all block matrices, the base frozen.

The samples and the loss are those of the transformer's own training, on films that are painted otherwise;
more than half of them go on from chunks of the same style, so that it holds in later chunks.
"""

import math
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.checkpoints.checkpoints import load_weights, open_checkpoint
from export.nano.films import FilmBank
from export.nano.optim import MuonAdam
from export.nano.transformer_training import LAYOUTS, Layout, Params, TransformerTraining
from export.nano.world import CPU

RANK: Final = 8
PEAK: Final = 3e-3
SHARES: Final = {
    "none->3": 3.0,
    "none->2": 0.5,
    "3->3": 1.5,
    "3+3->3": 0.5,
    "3+3+3->3 later": 1.5,
    "2->1": 0.5,
}


class AdamOnly(MuonAdam):
    """Adam for all of a few small matrices."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__([], parameters, adam_factor=1.0)

    def step(self, rate: float, clip: float = 1.0) -> None:
        nn.utils.clip_grad_norm_(self.others, clip)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()


class AdapterTraining(TransformerTraining):
    """State of the training of one adapter; the average is of the adapter's own matrices."""

    def __init__(
        self,
        weights: Path,
        bank: FilmBank,
        size: tuple[int, int],
        seed: int,
        steps: int,
        device: torch.device = CPU,
    ) -> None:
        """weights: file of the transformer that the adapter is for."""
        super().__init__(bank, size, seed, steps, PEAK, average=0.98, device=device)
        load_weights(open_checkpoint(weights), *self.modules, device=device)
        self.base = {n: q for module in self.modules for n, q in module.named_parameters()}
        pairs: dict[str, nn.Parameter] = {}
        for name, weight in self.base.items():
            if name.startswith("blocks.") and name.endswith(".weight_t"):
                inputs, outputs = weight.shape
                down = torch.randn(RANK, inputs, device=device, generator=self.generator) / math.sqrt(inputs)
                module = name.removesuffix(".weight_t")
                pairs[f"{module}.lora_A"] = nn.Parameter(down)
                pairs[f"{module}.lora_B"] = nn.Parameter(torch.zeros(outputs, RANK, device=device))
        self.params = pairs
        self.average = {n: q.detach().clone() for n, q in pairs.items()}
        self.optimiser = AdamOnly(list(pairs.values()))

    def weights(self) -> Params:
        changed: dict[str, Tensor] = dict(self.base)
        for name, down in self.params.items():
            if name.endswith(".lora_A"):
                module = name.removesuffix(".lora_A")
                up = self.params[f"{module}.lora_B"]
                changed[f"{module}.weight_t"] = self.base[f"{module}.weight_t"] + (up @ down).t()
        return {name: q.bfloat16() for name, q in changed.items()}

    def draw_layout(self) -> Layout:
        chosen = [each for each in LAYOUTS if each.name in SHARES]
        return self.rng.choices(chosen, [SHARES[each.name] for each in chosen])[0]


def save_adapter(training: dict[str, Any], path: Path, title: str, description: str) -> None:
    """Write the averaged matrices of a training's state as a LoRA file with ComfyUI's names, 16 bit."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in training["average"].items():
        tensors[f"diffusion_model.{name}.weight"] = tensor.half().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"modelspec.title": title, "modelspec.description": description})
