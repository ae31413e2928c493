"""Run a training to its end, with checkpoints: interrupted at any moment, it goes on where it was saved."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

SAVE_EVERY_S = 45.0
LOG_EVERY = 100  # steps

Say = Callable[[str], None]


class Training(Protocol):
    """A training that can be stopped between any two steps."""

    @property
    def steps(self) -> int: ...

    @property
    def done(self) -> int: ...

    def step(self) -> Mapping[str, Tensor | float]:
        """One step; what there is to report. Tensors are read late, so that a GPU need not be waited for."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def run(name: str, training: Training, path: Path, say: Say) -> None:
    """Steps until `training.steps`, from the checkpoint at `path` if there is one; leaves one at the end."""
    spent_s = 0.0
    if path.is_file():
        state = torch.load(path, weights_only=False, map_location="cpu")
        training.load_state_dict(state["training"])
        spent_s = state["spent_s"]
        say(f"{name}: goes on at step {training.done} of {training.steps}")
    began = saved = time.monotonic()
    cpu = time.process_time()
    seen: dict[str, list[Tensor | float]] = {}
    count = 0
    while training.done < training.steps:
        for key, value in training.step().items():
            seen.setdefault(key, []).append(value)
        count += 1
        if count == LOG_EVERY or training.done == training.steps:
            means = "  ".join(
                f"{key} {float(sum(values)) / len(values):.4f}" for key, values in sorted(seen.items())
            )
            say(f"{name}: step {training.done}/{training.steps}  {means}  {time.monotonic() - began:.0f} s")
            seen, count = {}, 0
        if time.monotonic() - saved > SAVE_EVERY_S:
            saved = time.monotonic()
            _save(path, training, spent_s + time.process_time() - cpu)
    spent_s += time.process_time() - cpu
    _save(path, training, spent_s)
    say(f"{name}: {training.steps} steps took {spent_s / 60:.1f} minutes of processor time")


def _save(path: Path, training: Training, spent_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"training": training.state_dict(), "spent_s": spent_s}, partial)
    os.replace(partial, path)
