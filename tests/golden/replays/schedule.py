"""Replay of the scheduler: tables, lookups, conversions."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from streaming.schedule import TRAINING_STEPS, FlowSchedule, first_video_step
from tests.golden.case import GoldenCase


def replay_scheduler(case: GoldenCase) -> None:
    steps = case.config["num_train_timesteps"]
    for shift in case.values["shifts"]:
        assert_tables_and_conversions(case, FlowSchedule.shifted(shift, steps), f"shift{shift:g}")
    for entry in case.values["lists"]:
        assert_step_list(case, FlowSchedule.shifted(entry["shift"], steps), entry)
    for entry in case.values["video_first_step"]:
        scale = entry["noise_scale"]
        case.assert_equal(
            f"values.video_first_step, {scale}", first_video_step(scale), entry["first_timestep"]
        )


def assert_tables_and_conversions(case: GoldenCase, schedule: FlowSchedule, name: str) -> None:
    names = ("timestep", "clean", "noise", "flow")
    t, clean, noise, flow = (case.tensors[f"in.{name}.{part}"] for part in names)
    bf16 = {"clean": clean.bfloat16(), "noise": noise.bfloat16(), "flow": flow.bfloat16()}
    actual: dict[str, Tensor] = {
        "sigmas": schedule.sigmas,
        "timesteps": schedule.timesteps,
        "index": schedule.index(t),
        "add_noise": schedule.add_noise(clean, noise, t),
        "x0_from_flow": schedule.to_x0(flow, noise, t),
        "flow_from_x0": to_flow(schedule, clean, noise, t),
        "add_noise_bf16": schedule.add_noise(bf16["clean"], bf16["noise"], t).float(),
        "x0_from_flow_bf16": schedule.to_x0(bf16["flow"], bf16["noise"], t).float(),
    }
    for part, tensor in actual.items():
        case.assert_close(f"out.{name}.{part}", tensor)


def assert_step_list(case: GoldenCase, schedule: FlowSchedule, entry: Mapping[str, Any]) -> None:
    raw = torch.tensor(entry["denoising_step_list"])
    warped = warp(schedule, raw)
    what = f"values.lists, shift {entry['shift']:g}, {entry['denoising_step_list']}"
    case.assert_equal(f"{what}: index_raw", schedule.index(raw).tolist(), entry["index_raw"])
    case.assert_equal(f"{what}: index_warped", schedule.index(warped).tolist(), entry["index_warped"])
    case.assert_near(f"{what}: warped", warped.tolist(), entry["warped"])
    case.assert_near(f"{what}: sigma_raw", schedule.sigma(raw).tolist(), entry["sigma_raw"])
    case.assert_near(f"{what}: sigma_warped", schedule.sigma(warped).tolist(), entry["sigma_warped"])


def to_flow(schedule: FlowSchedule, x_0: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
    """Inverse of `FlowSchedule.to_x0`. Shape and type of x_0 out."""
    sigma = schedule.sigma(timestep).double().reshape(*timestep.shape, 1, 1, 1)
    return ((x_t.double() - x_0.double()) / sigma).to(x_0.dtype)


def warp(schedule: FlowSchedule, steps: Tensor) -> Tensor:
    """Timesteps of a step list in the research code's convention: [n] integers -> float32 [n].

    Step L stands for table entry 1000 - L; 0 for timestep 0. Scope's pipelines do not warp (wan.md 4.4).
    """
    table = torch.cat([schedule.timesteps, torch.zeros(1)])
    return table[TRAINING_STEPS - steps.long()]


REPLAYS: dict[str, Callable[[GoldenCase], None]] = {"wan.scheduler": replay_scheduler}
