"""Properties of the flow schedule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.schedule import FlowSchedule, first_video_step
from tests.golden.replays.schedule import to_flow

SHIFTS = st.floats(1.0, 20.0)
TIMESTEPS = st.lists(st.floats(0.0, 1000.0, width=32), min_size=1, max_size=6)


def frames(count: int, seed: int) -> torch.Tensor:
    return torch.randn(1, count, 4, 2, 3, generator=torch.Generator().manual_seed(seed))


@given(SHIFTS)
def test_sigmas_fall_from_one_and_stay_positive(shift: float) -> None:
    sigmas = FlowSchedule.shifted(shift).sigmas

    assert sigmas[0].item() == pytest.approx(1, abs=1e-6)
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] > 0


@given(SHIFTS, TIMESTEPS)
def test_lookup_finds_the_nearest_entry(shift: float, timesteps: list[float]) -> None:
    schedule = FlowSchedule.shifted(shift)

    index = schedule.index(torch.tensor(timesteps))

    for t, i in zip(timesteps, index.tolist(), strict=True):
        nearest = min(abs(entry - t) for entry in schedule.timesteps.tolist())
        assert abs(schedule.timesteps[i].item() - t) == pytest.approx(nearest, abs=1e-4)


@given(SHIFTS, TIMESTEPS, st.integers(0, 99))
def test_the_true_flow_leads_back_to_x0(shift: float, timesteps: list[float], seed: int) -> None:
    schedule = FlowSchedule.shifted(shift)
    x_0, noise = frames(len(timesteps), seed), frames(len(timesteps), seed + 1)
    t = torch.tensor([timesteps])

    x_t = schedule.add_noise(x_0, noise, t)

    assert torch.allclose(schedule.to_x0(noise - x_0, x_t, t), x_0, atol=1e-5)


@given(SHIFTS, TIMESTEPS, st.integers(0, 99))
def test_flow_and_x0_are_inverse(shift: float, timesteps: list[float], seed: int) -> None:
    schedule = FlowSchedule.shifted(shift)
    x_0, x_t = frames(len(timesteps), seed).double(), frames(len(timesteps), seed + 1).double()
    t = torch.tensor([timesteps])

    flow = to_flow(schedule, x_0, x_t, t)

    assert torch.allclose(schedule.to_x0(flow, x_t, t), x_0, atol=1e-12)


def test_frames_of_one_call_may_have_different_timesteps() -> None:
    schedule = FlowSchedule.shifted(5.0)
    x_0, noise = frames(3, 0), frames(3, 1)

    together = schedule.add_noise(x_0, noise, torch.tensor([[1000.0, 500.0, 0.0]]))

    for i, t in enumerate((1000.0, 500.0, 0.0)):
        alone = schedule.add_noise(x_0[:, i : i + 1], noise[:, i : i + 1], torch.tensor([[t]]))
        assert torch.equal(together[:, i : i + 1], alone)


def test_the_highest_timestep_is_pure_noise() -> None:
    schedule = FlowSchedule.shifted(8.0)

    assert torch.equal(schedule.add_noise(frames(1, 0), frames(1, 1), torch.tensor([[1000]])), frames(1, 1))


def test_bf16_latents_are_converted_in_higher_precision() -> None:
    schedule = FlowSchedule.shifted(5.0)
    flow, x_t = frames(2, 0).bfloat16(), frames(2, 1).bfloat16()
    t = torch.tensor([[750, 250]])

    x_0 = schedule.to_x0(flow, x_t, t)

    assert torch.equal(x_0, schedule.to_x0(flow.double(), x_t.double(), t).bfloat16())


@pytest.mark.parametrize("timestep", [-100, -1, 0])
def test_timesteps_below_the_table_take_its_last_entry(timestep: int) -> None:
    assert FlowSchedule.shifted(5.0).index(torch.tensor([timestep])).tolist() == [999]


@pytest.mark.parametrize(("noise_scale", "step"), [(0.7, 600), (0.0, -100), (0.299, 199), (1.0, 900)])
def test_first_video_step_truncates(noise_scale: float, step: int) -> None:
    assert first_video_step(noise_scale) == step
