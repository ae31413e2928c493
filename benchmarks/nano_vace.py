"""What the demonstration's VACE branch does: `python -m benchmarks.nano_vace --home HOME`.

Streams with a control video of a moving shape, or with a reference picture, judged by the pixels alone
(export/nano/measure.py), on exported engines in this process; without --home on PyTorch modules.
"""

import argparse
import math
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.latency_runs import set_of
from benchmarks.results import add_out_option, write_result
from export.checkpoints.demo import trained_weights, write_demo_models
from export.nano.in_process import in_process
from export.nano.measure import (
    Images,
    background_right,
    best_shape,
    object_mask,
    object_right,
    place,
    wrapped,
)
from export.nano.vace_films import FRAMES, silhouette
from export.nano.world import SHAPES, Scene, draw, palette_of
from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.engines.load_plan import VacePlan
from streaming.engines.served import InProcess, open_model
from streaming.network.video import resample_indices
from streaming.specs import SPECS
from streaming.triton.model_pipeline import ModelPipeline

Kind = Literal["silhouette", "edges"]
Size = tuple[int, int]  # height and width in pixels
Places = Sequence[tuple[float, float]]  # x and y in pixels
NEAR = 4.0  # pixels
FIRST_FRAMES = 9  # pictures of a first chunk
EDGE = 3.0  # pixels
SCALES = (0.0, 0.5, 1.0)
OPEN = "a video"


def share(values: Sequence[bool]) -> float:
    return round(100 * sum(values) / max(1, len(values)), 1)


def pictures(
    scene: Scene, centres: Sequence[tuple[float, float]], radius: float, size: tuple[int, int]
) -> Images:
    """The scene's shape at these places, uint8 [T, H, W, 3]."""
    n = len(centres)
    drawn = draw(
        torch.full((n,), SHAPES.index(scene.shape)),
        torch.tensor(centres),
        torch.full((n,), radius),
        palette_of([scene] * n, "colour"),
        palette_of([scene] * n, "background"),
        size,
    )
    return _bytes(drawn)


def control(
    kind: Kind, shape: str, centres: Sequence[tuple[float, float]], radius: float, size: tuple[int, int]
) -> Images:
    """White on black, uint8 [T, H, W, 3]."""

    def cover(r: float) -> torch.Tensor:
        n = len(centres)
        ones = torch.ones(n, 3)
        index = torch.full((n,), SHAPES.index(shape))
        return (draw(index, torch.tensor(centres), torch.full((n,), r), ones, -ones, size) + 1) / 2

    alpha = cover(radius) if kind == "silhouette" else cover(radius) - cover(radius - EDGE)
    return _bytes(silhouette(alpha, dark=True))


def _bytes(values: torch.Tensor) -> Images:
    found: Images = ((values + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return found


class Stream:
    """Chunks of one stream."""

    def __init__(self, pipeline: ModelPipeline, seed: int) -> None:
        self._stream, self._seed = pipeline.open_stream(), seed

    def chunk(self, prompt: str, video: Images | None = None, **parameters: Any) -> Images:
        wanted = {
            "prompts": [{"text": prompt, "weight": 1.0}],
            "base_seed": self._seed,
            "input_mode": "text" if video is None else "video",
            **parameters,
        }
        return np.concatenate([part for part, _ in self._stream.next_chunk(wanted, video, lambda: False)])


def distance(image: Images, scene: Scene, wanted: tuple[float, float]) -> float:
    """Of the object to a place on the torus, in pixels; infinite where there is none."""
    found = place(object_mask(image, scene))
    if found is None:
        return math.inf
    height, width = image.shape[:2]
    return math.hypot(wrapped(found[0] - wanted[0], width), wrapped(found[1] - wanted[1], height))


def controlled(pipeline: ModelPipeline, kind: Kind, cases: int, chunks: int, scale: float) -> dict[str, Any]:
    """Where the object is at the end of each chunk, compared with the control video."""
    size = pipeline.model.height, pipeline.model.width
    rng = random.Random(1)
    near: list[list[bool]] = [[] for _ in range(chunks)]
    distances: list[float] = []
    shapes: list[bool] = []
    for case in range(cases):
        scene = Scene.drawn(rng)
        radius = rng.uniform(14, 24)
        start = rng.uniform(0, size[1]), rng.uniform(0, size[0])
        speed = rng.uniform(-2, 2), rng.uniform(-2, 2)
        stream = Stream(pipeline, 100 + case)
        for i in range(chunks):
            times = range(FRAMES * i, FRAMES * (i + 1))
            centres = [(start[0] + speed[0] * t, start[1] + speed[1] * t) for t in times]
            video = control(kind, scene.shape, centres, radius, size)
            image = stream.chunk(scene.prompt, video, vace_context_scale=scale)[-1]
            last = resample_indices(FRAMES, FRAMES + 1)[FIRST_FRAMES - 1] if i == 0 else FRAMES - 1
            found = distance(image, scene, centres[last])
            near[i].append(found <= NEAR)
            distances.append(min(found, 1e3))
            shapes.append(best_shape(image, scene)[0] == scene.shape)
    return {
        "within_4_px_percent": share([each for chunk in near for each in chunk]),
        "by_chunk_percent": [share(chunk) for chunk in near],
        "median_px": round(float(np.median(distances)), 2),
        "shape_percent": share(shapes),
    }


def referenced(pipeline: ModelPipeline, cases: int, scale: float) -> dict[str, Any]:
    """Whether a reference's object is in the first chunk, and still after three more."""
    size = pipeline.model.height, pipeline.model.width
    rng = random.Random(2)
    rows: dict[str, list[bool]] = {
        name: [] for name in ("background", "colour", "shape", "place", "kept", "named")
    }
    for case in range(cases):
        scene = replace(Scene.drawn(rng), motion="stays still")
        radius = rng.uniform(15, 25)
        where = rng.uniform(0, size[1]), rng.uniform(0, size[0])
        reference = pictures(scene, [where], radius, size)[0]
        stream = Stream(pipeline, 200 + case)
        image = stream.chunk(OPEN, vace_ref_images=[reference], vace_context_scale=scale)[-1]
        rows["background"].append(background_right(image, scene))
        rows["colour"].append(object_right(image, scene))
        rows["shape"].append(rows["colour"][-1] and best_shape(image, scene)[0] == scene.shape)
        rows["place"].append(distance(image, scene, where) <= NEAR)
        later = [stream.chunk(OPEN)[-1] for _ in range(3)][-1]
        rows["kept"].append(background_right(later, scene) and object_right(later, scene))
        named = Stream(pipeline, 200 + case)
        named.chunk(OPEN, vace_ref_images=[reference], vace_context_scale=scale)
        last = [named.chunk(scene.prompt)[-1] for _ in range(3)][-1]
        rows["named"].append(background_right(last, scene) and object_right(last, scene))
    return {f"{name}_percent": share(values) for name, values in rows.items()}


def engines(home: Path) -> ModelPipeline:
    """LongLive's demonstration engines with the branch, in ONNX Runtime."""
    spec = SPECS["longlive"]
    directory = set_of(home / "engines", spec)
    model = open_model(directory, spec, InProcess(home / "engines" / "models"), vace=VacePlan())
    return ModelPipeline(spec, model, base_seed=spec.base_seed)


def modules(branch: Path | None) -> ModelPipeline:
    """The same on PyTorch. branch: file of another one than the package's."""
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        write_demo_models(models, trained_weights(), ("longlive",), vace=True)
        if branch is not None:
            target = models / TRANSFORMER_FILES["longlive"].vace
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(branch, target)
        return in_process(models, "longlive", vace=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="directory with exported demonstration engines")
    parser.add_argument("--branch", type=Path, help="file of a branch, for PyTorch")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--scales", type=float, nargs="*", default=SCALES)
    add_out_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = modules(args.branch) if args.home is None else engines(args.home)
    results: dict[str, Any] = {"cases": args.cases, "engines": args.home is not None}
    for scale in args.scales:
        chunks = args.chunks if scale == 1 else 2
        results[f"scale {scale:g}"] = row = {
            "silhouette": controlled(pipeline, "silhouette", args.cases, chunks, scale),
            "edges": controlled(pipeline, "edges", args.cases, chunks, scale),
            "reference": referenced(pipeline, args.cases, scale),
        }
        print(scale, row, flush=True)
    write_result(args.out, "nano_vace", results)


if __name__ == "__main__":
    main()
