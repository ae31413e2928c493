"""One golden case: recorded inputs and weights of a reference, and what it computed from them.

The format is that of the golden directory's README.md. What a kind means stands in `replays`, not here.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from export.checkpoints.checkpoints import Checkpoint, open_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "golden"  # all cases
COMMITTED = Path(__file__).parent / "data"  # a subset, for a plain clone
EXPECTED = ("out.", "state.")


def golden_directory() -> Path:
    """WANSTREAM_GOLDEN, else the full set beside the repository, else the subset in it."""
    if chosen := os.environ.get("WANSTREAM_GOLDEN"):
        return Path(chosen).resolve()
    return SHARED if SHARED.is_dir() else COMMITTED


def discover(directory: Path) -> list["GoldenCase"]:
    """All cases below a directory, by name. Raises ValueError if there is none, or a file is no case."""
    cases = [GoldenCase.read(path, directory) for path in sorted(directory.rglob("*.json"))]
    if not cases:
        raise ValueError(f"No golden cases (*.json) below '{directory}'. Point WANSTREAM_GOLDEN at some.")
    return cases


@dataclass(frozen=True)
class Tolerance:
    """abs(actual - expected) <= atol + rtol * abs(expected), element by element."""

    atol: float
    rtol: float


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """A case with its tensors. `compared` collects the expected tensors that a replay has checked."""

    path: Path  # of the JSON file
    directory: Path  # of all cases
    meta: Mapping[str, Any]
    compared: set[str] = field(default_factory=set)

    @staticmethod
    def read(path: Path, directory: Path) -> "GoldenCase":
        """Read the JSON file of a case."""
        meta = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(meta, dict):
            raise ValueError(f"'{path}' is no golden case: it is not a JSON object.")
        return GoldenCase(path, directory, meta)

    def __str__(self) -> str:
        return self.path.relative_to(self.directory).with_suffix("").as_posix()

    @property
    def kind(self) -> str:
        return str(self.meta.get("kind", "(none given)"))

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the model or scheduler; the only source of sizes for a replay."""
        return dict(self.meta["config"])

    @property
    def values(self) -> dict[str, Any]:
        """Expectations that need no tensor file."""
        return dict(self.meta.get("values", {}))

    @property
    def steps(self) -> list[dict[str, Any]]:
        """One entry per call of a multi-call case."""
        return list(self.meta.get("steps", []))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the case's own file but its weights."""
        path = self.path.with_suffix(".safetensors")
        loaded = load_file(path) if path.exists() else {}
        return {name: tensor for name, tensor in loaded.items() if not name.startswith("weights.")}

    @property
    def weights_path(self) -> Path:
        """The file that holds the weights of this case."""
        source = self.meta.get("weights_from")
        if source is None:
            return self.path.with_suffix(".safetensors")
        candidates = [root / f"{source}.safetensors" for root in (self.path.parents[1], self.directory)]
        for candidate in candidates:
            if candidate.exists():
                return candidate
        raise FileNotFoundError(f"{self}: weights_from '{source}' is none of {list(map(str, candidates))}")

    def checkpoint(self, prefix: str = "") -> Checkpoint:
        """The weights as a checkpoint file, read by the reader of real ones.

        `prefix` takes a part of them: "vae." the tensors `weights.vae.*`.
        """
        return open_checkpoint(self.weights_path, prefix=f"weights.{prefix}")

    def expected(self) -> Iterator[str]:
        """Names of all tensors that the reference computed."""
        for name in self.tensors:
            step, _, rest = name.partition(".")
            if name.startswith(EXPECTED) or (step.startswith("step") and rest.startswith(EXPECTED)):
                yield name

    def tolerance(self, name: str) -> Tolerance:
        """By the exact name of a tensor, else by the longest prefix ending in *, else the default."""
        default: Mapping[str, Any] = self.meta["tolerance"]
        overrides: Mapping[str, Mapping[str, float]] = default.get("per_tensor", {})
        prefixes = [key for key in overrides if key.endswith("*") and name.startswith(key[:-1])]
        key = name if name in overrides else max(prefixes, key=len, default=None)
        chosen = {**default, **(overrides[key] if key is not None else {})}
        return Tolerance(float(chosen["atol"]), float(chosen["rtol"]))

    def assert_close(self, name: str, actual: Tensor) -> None:
        """Compare with the expected tensor; the error names the case, the tensor, the worst element."""
        self.compared.add(name)
        expected = self.tensors[name]
        assert actual.shape == expected.shape, (
            f"{self}: {name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
        )
        exact = not expected.is_floating_point()
        tolerance = Tolerance(0.0, 0.0) if exact else self.tolerance(name)
        self._compare(name, actual.double(), expected.double(), tolerance)

    def assert_equal(self, what: str, actual: Any, expected: Any) -> None:
        """Compare a value of the JSON file exactly; the error names the case and the value."""
        assert actual == expected, f"{self}: {what}: {actual!r}, expected {expected!r}"

    def assert_near(self, what: str, actual: Sequence[float], expected: Sequence[float]) -> None:
        """Compare numbers of the JSON file with the default tolerance; the error names the worst."""
        got, want = torch.tensor(actual, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
        assert got.shape == want.shape, f"{self}: {what}: {list(actual)}, expected {list(expected)}"
        self._compare(what, got, want, self.tolerance(what))

    def _compare(self, what: str, actual: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
        difference = (actual - expected).abs()
        allowed = tolerance.atol + tolerance.rtol * expected.abs()
        wrong = ~(difference <= allowed)  # NaN is wrong too
        if not wrong.any():
            return
        excess = torch.where(wrong, (difference - allowed).nan_to_num(nan=math.inf), -math.inf)
        index = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        raise AssertionError(
            f"{self}: {what}: {int(wrong.sum())} of {wrong.numel()} elements differ; worst at {list(index)}: "
            f"actual {actual[index].item():.9g}, expected {expected[index].item():.9g}, "
            f"difference {difference[index].item():.3g}, allowed {allowed[index].item():.3g} "
            f"(atol {tolerance.atol:g}, rtol {tolerance.rtol:g})"
        )
