"""How well the nano checkpoint follows its prompts: `python -m benchmarks.nano_quality`.

Random prompts of its world, one stream each, judged by the pixels alone (export/nano/measure.py): colours,
form and motion by chunk, drift over a minute, reaction to a new prompt and to a transition, what the cache
and the seed change, and the VAE by itself. With `--sheet` and `--video` it also saves what it saw.

The networks run on PyTorch here; as exported engines in this process (--home); or in a Triton server where
the pipeline is loaded, as a server of this product starts one (--triton HOST:PORT).
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.latency_runs import set_of
from benchmarks.results import add_out_option, write_result
from export.checkpoints.demo import trained_weights, write_demo_models
from export.checkpoints.load import load_vae
from export.graphs.vae import WanVae
from export.graphs.vae_graphs import decode, encode
from export.nano.films import CHUNKS, Film, draw_films
from export.nano.in_process import in_process
from export.nano.measure import (
    Images,
    background_error,
    background_right,
    best_shape,
    motion_right,
    object_mask,
    object_right,
    place,
    wrapped,
)
from export.nano.vae_training import psnr
from export.nano.world import PALETTE, Scene, States
from export.onnx.jobs import Size
from gateway.triton.session import TritonSession
from streaming.checkpoints.files import VAE_FILES
from streaming.engines.demo import read_demo
from streaming.engines.served import InProcess, open_model
from streaming.specs import SPECS
from streaming.triton import sessions as streams
from streaming.triton.model_pipeline import ModelPipeline
from streaming.triton.protocol import Meta

Results = dict[str, Any]
MINUTE_S, PICTURES_PER_S, CHUNK_PICTURES = 60, 15, 12
LONG_CHUNKS = MINUTE_S * PICTURES_PER_S // CHUNK_PICTURES
ROUND_TRIPS = 8  # films
SHOWN = 6  # prompts on the contact sheet and in the video


class Source(Protocol):
    """Something that opens streams of one pipeline."""

    def open_stream(self) -> streams.Stream: ...


class Stream:
    """Chunks of one stream."""

    def __init__(self, source: Source, seed: int, **parameters: Any) -> None:
        self._stream = source.open_stream()
        self._parameters = {"base_seed": seed, "input_mode": "text"} | parameters

    def chunk(self, prompt: str, **parameters: Any) -> Images:
        """[T, H, W, 3]"""
        wanted = {"prompts": [{"text": prompt, "weight": 1.0}], **self._parameters, **parameters}
        groups = [pictures for pictures, _ in self._stream.next_chunk(wanted, None, lambda: False)]
        return np.concatenate(groups)


class TritonSource:
    """Streams on a pipeline that is loaded in a Triton server."""

    def __init__(self, url: str, pipeline: str) -> None:
        self._url, self._pipeline = url, pipeline
        self.loop = asyncio.new_event_loop()

    def open_stream(self) -> "TritonStream":
        return TritonStream(self.loop, self.loop.run_until_complete(self._open()))

    async def _open(self) -> TritonSession:
        return TritonSession(InferenceServerClient(self._url), self._pipeline, on_dead=sys.exit)


class TritonStream:
    """One sequence, chunk by chunk."""

    def __init__(self, loop: asyncio.AbstractEventLoop, session: TritonSession) -> None:
        self._loop, self._session = loop, session

    def next_chunk(
        self, parameters: Mapping[str, Any], video: Images | None, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Images, Meta]]:
        async def parts() -> list[tuple[Images, Meta]]:
            return [(part.frames, part.meta) async for part in self._session.generate(parameters, video)]

        return iter(self._loop.run_until_complete(parts()))

    def __del__(self) -> None:
        self._loop.run_until_complete(self._session.close())


def share(values: Sequence[bool]) -> float:
    return round(100 * sum(values) / max(1, len(values)), 1)


def adherence(pipeline: Source, prompts: int, chunks: int, seed: int) -> tuple[Results, list[Any]]:
    """Per chunk: percentages of prompts with the right colours, form and motion."""
    rng = random.Random(seed)
    rows: dict[int, list[dict[str, Any]]] = {i: [] for i in range(chunks)}
    shown = []
    for number in range(prompts):
        scene = Scene.drawn(rng)
        stream = Stream(pipeline, seed + number)
        before: Images | None = None
        pictures = []
        for i in range(chunks):
            images = stream.chunk(scene.prompt)
            rows[i].append(_judge(images, before, scene))
            before = images
            pictures.append(images)
        if number < SHOWN:
            shown.append((scene.prompt, pictures))
    table = {str(i): _summary(entries) for i, entries in rows.items()}
    moving = [e["motion"] for i in range(1, min(10, chunks)) for e in rows[i] if e["moving"]]
    shapes = [e["shape"] for i in range(min(10, chunks)) for e in rows[i] if e["shape"] is not None]
    return {
        "by_chunk": table,
        "motion_right_1_to_9": share(moving),
        "shape_right_0_to_9": share(shapes),
        "prompts": prompts,
    }, shown


def _judge(images: Images, before: Images | None, scene: Scene) -> dict[str, Any]:
    last = images[-1]
    run = images if before is None else np.concatenate([before[-1:], images])
    return {
        "background": background_right(last, scene),
        "object": object_right(last, scene),
        "both": background_right(last, scene) and object_right(last, scene),
        "error": background_error(last, scene),
        "motion": motion_right(run, scene),
        "moving": scene.motion.startswith("moves"),
        "shape": best_shape(last, scene)[0] == scene.shape if scene.size != "small" else None,
    }


def _summary(entries: Sequence[Mapping[str, Any]]) -> Results:
    return {
        "background_right": share([e["background"] for e in entries]),
        "both_colours_right": share([e["both"] for e in entries]),
        "background_error": round(float(np.mean([e["error"] for e in entries])), 1),
        "motion_right": share([e["motion"] for e in entries if e["moving"]]),
        "shape_right": share([e["shape"] for e in entries if e["shape"] is not None]),
    }


def switches(pipeline: Source, count: int, seed: int) -> Results:
    """A new prompt after 3 chunks: is its background there in the first one, and its object in the third."""
    rng = random.Random(seed)
    first, later = [], []
    for number in range(count):
        old, new = Scene.drawn(rng), Scene.drawn(rng)
        stream = Stream(pipeline, seed + number)
        for _ in range(3):
            stream.chunk(old.prompt)
        chunks = [stream.chunk(new.prompt) for _ in range(3)]
        first.append(background_right(chunks[0][-1], new))
        later.append(object_right(chunks[2][-1], new))
    return {"background_right_first_chunk": share(first), "object_right_third_chunk": share(later)}


def transitions(pipeline: Source, count: int, seed: int, steps: int = 4) -> Results:
    """From one background to another: does the distance to the target fall all the way, and is it reached."""
    rng = random.Random(seed)
    monotonic, reached = [], []
    for number in range(count):
        old = Scene.drawn(rng)
        colours = [c for c in PALETTE if c not in (old.background, old.colour)]
        new = Scene(old.size, old.colour, old.shape, old.motion, rng.choice(colours))
        stream = Stream(pipeline, seed + number)
        for _ in range(2):
            images = stream.chunk(old.prompt)
        transition = {
            "target_prompts": [{"text": new.prompt, "weight": 1.0}],
            "num_steps": steps,
            "temporal_interpolation_method": "linear",
        }
        distances = [_distance(images[-1], new)]
        for _ in range(steps):
            images = stream.chunk(old.prompt, transition=transition)
            distances.append(_distance(images[-1], new))
        monotonic.append(all(b <= a + 2 for a, b in pairwise(distances)))
        reached.append(background_right(images[-1], new))
    return {"monotonic": share(monotonic), "target_reached": share(reached), "steps": steps}


def _distance(image: Images, scene: Scene) -> float:
    """Of the median colour, which is the background's, to the prompted one."""
    median = np.median(image.reshape(-1, 3), axis=0)
    return float(np.linalg.norm(median - PALETTE[scene.background]))


def cache_and_seed(pipeline: Source, count: int, seed: int, size: Size) -> Results:
    """Median way of the object between chunks with and without cache, and what a seed changes."""
    rng = random.Random(seed)
    steps: dict[bool, list[float]] = {True: [], False: []}
    apart, same = [], []
    for number in range(count):
        drawn = Scene.drawn(rng)
        scene = Scene("large", drawn.colour, drawn.shape, "stays still", drawn.background)
        for cached in steps:
            stream = Stream(pipeline, seed + number)
            places = []
            for i in range(4):
                fresh = {} if cached else {"init_cache": True, "base_seed": seed + number + 1000 * i}
                places.append(place(object_mask(stream.chunk(scene.prompt, **fresh)[-1], scene)))
            steps[cached] += list(_ways(places, size[1], size[0]))
        pictures = [Stream(pipeline, s).chunk(scene.prompt) for s in (seed, seed + 1, seed)]
        found = [place(object_mask(p[-1], scene)) for p in pictures[:2]]
        apart += [way > 8 for way in _ways(found, size[1], size[0])]
        same.append(bool((pictures[0] == pictures[2]).all()))
    return {
        "median_way_with_cache_px": round(float(np.median(steps[True] or [0])), 1),
        "median_way_without_px": round(float(np.median(steps[False] or [0])), 1),
        "seeds_apart": share(apart),
        "same_seed_identical": share(same),
    }


def _ways(places: Sequence[tuple[float, float] | None], width: int, height: int) -> Iterator[float]:
    for a, b in pairwise(places):
        if a is not None and b is not None:
            yield float(np.hypot(wrapped(b[0] - a[0], width), wrapped(b[1] - a[1], height)))


def after_a_minute(pipeline: Source, prompts: int, seed: int) -> Results:
    """What is left of the prompt at the end of a stream of a minute."""
    rng = random.Random(seed)
    entries = []
    for number in range(prompts):
        scene = Scene.drawn(rng)
        stream = Stream(pipeline, seed + number)
        before = images = stream.chunk(scene.prompt)
        for _ in range(LONG_CHUNKS - 1):
            before, images = images, stream.chunk(scene.prompt)
        entries.append(_judge(images, before, scene))
    return _summary(entries) | {"prompts": prompts, "chunks": LONG_CHUNKS}


@torch.no_grad()
def round_trips(models: Path, size: Size, seed: int, count: int = ROUND_TRIPS) -> Results:
    """PSNR in dB of films of 45 frames through the VAE alone, of all frames and of the first and last 12."""
    vae = load_vae(models / VAE_FILES["wan"], "wan")
    assert isinstance(vae, WanVae)
    rng = random.Random(seed)
    films = [Film.drawn(rng, start=True) for _ in range(count)]
    place = States.drawn(rng, count, size).place
    pictures, _ = draw_films(films, States(place, torch.zeros(count)), size, range(CHUNKS))
    errors = []
    for each in pictures:
        clip = each.transpose(0, 1)[None]
        errors.append((decode(vae, encode(vae, clip)[0])[0] - clip).square().mean(dim=(0, 1, 3, 4)))
    by_frame = torch.stack(errors)
    parts = {"mean_db": by_frame, "first_12_db": by_frame[:, :12], "last_12_db": by_frame[:, -12:]}
    return {name: round(psnr(float(part.mean())), 1) for name, part in parts.items()}


def contact_sheet(shown: Sequence[tuple[str, Sequence[Images]]], path: Path, columns: int = 8) -> None:
    """One row per prompt: pictures from its chunks, twice their size."""
    tile = 2 * shown[0][1][0].shape[1]
    caption = 18
    sheet = Image.new("RGB", (columns * (tile + 4), len(shown) * (tile + caption + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (prompt, chunks) in enumerate(shown):
        top = row * (tile + caption + 4)
        pen.text((2, top + 2), prompt, fill="black")
        frames = np.concatenate(list(chunks))
        picked = np.linspace(0, len(frames) - 1, columns).round().astype(int)
        for column, index in enumerate(picked):
            picture = Image.fromarray(frames[index]).resize((tile, tile), Image.Resampling.BICUBIC)
            sheet.paste(picture, (column * (tile + 4), top + caption))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(path, optimize=True)  # flat colours


def video(shown: Sequence[tuple[str, Sequence[Images]]], path: Path, rate: int = 16) -> None:
    """All prompts one after the other, H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = shown[0][1][0].shape[1:3]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _, chunks in shown:
            for picture in np.concatenate(list(chunks)):
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="directory of a checkpoint; default: the shipped one")
    parser.add_argument("--pipeline", default="longlive")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--long", type=int, default=0, help="prompts of which a whole minute is made")
    parser.add_argument("--home", type=Path, help="home directory whose exported engines are run here")
    parser.add_argument("--triton", help="HOST:PORT of a Triton server where the pipeline is loaded")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="save a contact sheet (PNG)")
    parser.add_argument("--video", type=Path, help="save the same streams (MP4)")
    add_out_option(parser)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wanstream-nano-") as directory:
        models = options.models or Path(directory)
        if options.models is None:
            write_demo_models(models, trained_weights())
        size = read_demo(models).size
        found: Results = {"round_trip": round_trips(models, size, options.seed)}
        source, found["engines"] = open_source(options, models, size)
    judged, shown = adherence(source, options.prompts, options.chunks, options.seed)
    found |= judged
    some = max(4, options.prompts // 3)
    found["switch"] = switches(source, some, options.seed)
    found["transition"] = transitions(source, some, options.seed)
    found["cache_and_seed"] = cache_and_seed(source, some, options.seed, size)
    if options.long:
        found["after_a_minute"] = after_a_minute(source, options.long, options.seed)
    found["pipeline"], found["took_s"] = options.pipeline, round(time.monotonic() - began)
    print(_table(found))
    if options.sheet:
        contact_sheet(shown, options.sheet)
    if options.video:
        video(shown, options.video)
    print(write_result(options.out, "nano_quality", found))


def open_source(options: argparse.Namespace, models: Path, size: Size) -> tuple[Source, str]:
    """Where streams come from, and a word for it."""
    if options.triton:
        return TritonSource(options.triton, options.pipeline), "served"
    if not options.home:
        return in_process(models, options.pipeline), "torch"
    spec, engines = SPECS[options.pipeline], options.home / "engines"
    torch.set_num_threads(1)
    model = open_model(set_of(engines, spec), spec, InProcess(engines / "models"), size)
    return ModelPipeline(spec, model, spec.base_seed), "onnx"


def _table(found: Mapping[str, Any]) -> str:
    columns = list(next(iter(found["by_chunk"].values())))
    lines = ["chunk  " + "  ".join(columns)]
    for chunk, row in found["by_chunk"].items():
        lines.append(f"{chunk:>5}  " + "  ".join(f"{row[c]:>{len(c)}}" for c in columns))
    lines += [f"{key}: {value}" for key, value in found.items() if key != "by_chunk"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
