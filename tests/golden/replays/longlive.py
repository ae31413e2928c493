"""Replays of what a streaming pipeline is made of: blending, transitions, noise scale, pixels, adapter."""

from collections.abc import Callable

import torch
from torch import Tensor

from export.checkpoints.checkpoints import open_checkpoint
from export.checkpoints.lora_merge import builtin_adapter, merge
from streaming.conditioning.blending import Transition, blend, normalised_weights
from streaming.network.pictures import to_pictures, to_unit_range
from streaming.network.video import input_clip, to_model
from streaming.noise import Array, motion_noise_scale
from tests.golden.case import GoldenCase


def blend_spatial(case: GoldenCase) -> None:
    """Several prompts at once, and the weights they get."""
    for k, step in enumerate(case.steps):
        embeddings = [case.tensors[f"in.{name}"] for name in step["embeddings"]]

        case.assert_close(f"step{k}.out.blend", blend(embeddings, step["weights"], step["method"]))
        weights = normalised_weights(step["weights"])
        case.assert_near(f"steps[{k}].normalized_weights", weights, step["normalized_weights"])


def blend_temporal(case: GoldenCase) -> None:
    """The points of transitions, one per chunk, and after which of them a transition is still running."""
    for k, step in enumerate(case.steps):
        source, target = (case.tensors[f"in.{step[end]}"] for end in ("source", "target"))
        way: Transition | None = Transition(source, target, step["num_steps"], step["method"])
        if way is not None and not way.changes_anything:
            way = None
        points: list[Tensor] = []
        active: list[bool] = []

        while way is not None:
            point, way = way.take()
            points.append(point)
            active.append(way is not None)

        case.assert_equal(f"steps[{k}].produced", len(points), step["produced"])
        case.assert_equal(f"steps[{k}].active_after_each", active, step["active_after_each"])
        if points:
            case.assert_close(f"step{k}.out.sequence", torch.cat(points))


def noise_controller(case: GoldenCase) -> None:
    """The noise scale of chunk after chunk; the last picture of each is remembered."""
    before: Array | None = None
    frames = case.config["num_frame_per_block"]
    scales = []

    for k, step in enumerate(case.steps):
        pictures = case.tensors[f"step{k}.in.frames_u8"].numpy()
        video = to_model([pictures], *pictures.shape[1:3])
        before = None if step["cache_init"] else before
        scales.append(motion_noise_scale(video, before, frames, step["base_noise_scale"]))
        before = video[:, :, -1:]

    case.assert_near("steps.noise_scale", scales, [step["noise_scale"] for step in case.steps])


def video_pre_post(case: GoldenCase) -> None:
    """Input pictures to a clip of the wanted size and length, decoded frames to pictures."""
    for k, step in enumerate(case.steps):
        if step.get("kind") == "postprocess":
            frames = case.tensors[f"step{k}.in.decoded"].transpose(1, 2)
            case.assert_close(f"step{k}.out.frames", to_unit_range(frames).movedim(0, -1))
            case.assert_close(f"step{k}.out.frames_u8", torch.from_numpy(to_pictures(frames)))
        else:
            pictures = case.tensors[f"step{k}.in.frames_u8"].numpy()
            clip = input_clip(pictures, step["height"], step["width"], step["target_num_frames"])
            case.assert_close(f"step{k}.out.video", torch.from_numpy(clip))


def adapter_merge(case: GoldenCase) -> None:
    """The built-in adapter merged into a checkpoint as an export reads it; other weights stay as they are."""
    file = open_checkpoint(case.path.with_suffix(".safetensors"), prefix="in.lora.")
    adapter, base = builtin_adapter(file, case.config["alpha"]), case.checkpoint()

    merged = dict(merge(base, adapter).tensors(list(base.entries)))

    ranks = {change.down.shape[0] for changes in adapter.values() for change in changes}
    case.assert_equal("config.rank", ranks, {case.config["rank"]})
    for key, before in base.tensors(list(base.entries)):
        if key in adapter:
            case.assert_close(f"out.merged.{key}", merged[key])
        else:
            case.assert_equal(f"{key} is not changed", torch.equal(merged[key], before), True)


REPLAYS: dict[str, Callable[[GoldenCase], None]] = {
    "longlive.adapter_merge": adapter_merge,
    "longlive.blend_spatial": blend_spatial,
    "longlive.blend_temporal": blend_temporal,
    "longlive.noise_controller": noise_controller,
    "longlive.video_pre_post": video_pre_post,
}
