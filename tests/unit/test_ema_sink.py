"""The averaged sink: frame by frame, in the type of the cache or in float32, and never in place."""

import pytest
import torch

from streaming.cache.ema_sink import EmaSink

SHAPE = (2, 1, 4, 2, 8)  # keys and values, batch, tokens of a frame, heads, head size


def frames(count: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_evicted_frame_goes_into_the_sink_frame_of_its_number(dtype: torch.dtype) -> None:
    sink, gone = frames(3, 0, dtype), frames(3, 1, dtype)
    before = [frame.clone() for frame in sink]

    after = EmaSink(0.75, frames=(sink,)).absorbing([gone]).frames[0]

    for j in range(3):
        torch.testing.assert_close(after[j], 0.75 * before[j] + 0.25 * gone[j])
        assert after[j].dtype == dtype
        assert torch.equal(sink[j], before[j])


def test_another_number_of_frames_takes_the_place_of_the_first_ones() -> None:
    sink, gone = frames(3, 0, torch.float32), frames(1, 1, torch.float32)

    after = EmaSink(0.75, frames=(sink,)).absorbing([gone]).frames[0]

    assert torch.equal(after[0], gone[0])
    assert after[0] is not gone[0]  # that one lies in a slot which is going to be written
    assert after[1:] == sink[1:]


def test_in_float32_small_changes_add_up_that_16_bits_round_away() -> None:
    start = frames(1, 0, torch.bfloat16)
    sinks = {float32: EmaSink(0.999, float32, (start,)) for float32 in (False, True)}
    exact = start[0].double()
    for k in range(100):
        gone = frames(1, k + 1, torch.bfloat16)
        exact = 0.999 * exact + 0.001 * gone[0].double()
        sinks = {float32: sink.absorbing([gone]) for float32, sink in sinks.items()}

    error = {float32: (sink.frames[0][0].double() - exact).abs().mean() for float32, sink in sinks.items()}
    assert sinks[True].frames[0][0].dtype == torch.float32
    assert sinks[False].frames[0][0].dtype == torch.bfloat16
    assert error[True] < 1e-5 < 1e-2 < error[False]
