"""The bias of keys against the formula of pipeline-krea-realtime-video.md 4.3, key by key."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streaming.cache.attention_bias import HIDDEN, key_bias

PADDING = 16
frame_counts = st.integers(0, 4)


def attention(scores: Tensor, values: Tensor) -> Tensor:
    return torch.softmax(scores.double(), dim=-1) @ values.double()


def reference(scores: Tensor, values: Tensor, frame: int, chunk: int, weight: float) -> Tensor:
    """As the specification writes it; scores [L] of the valid rows in order, values [L]."""
    valid, query = len(scores), chunk * frame
    scores = scores.double()
    for row in range(frame, valid - query):
        scores[row] += math.log(weight)
    extra = math.ceil(max(query, valid) / 128) * 128 - valid
    return attention(
        torch.cat([scores, torch.zeros(extra)]), torch.cat([values.double(), torch.zeros(extra).double()])
    )


@given(
    frame=st.integers(1, 40),
    past=frame_counts,
    chunk=st.integers(1, 4),
    weight=st.floats(0.01, 0.99),
    order=st.permutations(range(5)),
)
def test_attention_is_that_of_the_specification(
    frame: int, past: int, chunk: int, weight: float, order: list[int]
) -> None:
    capacity, slots = len(order), order[:past]
    generator = torch.Generator().manual_seed(frame)
    scores, values = torch.randn(2, (past + chunk) * frame, generator=generator)
    memory = torch.full((2, capacity * frame), 7.0)  # what empty slots hold must not matter
    for place, slot in enumerate(slots):
        for row, source in enumerate((scores, values)):
            memory[row, slot * frame : (slot + 1) * frame] = source[place * frame : (place + 1) * frame]
    new = torch.stack([scores, values])[:, past * frame :]
    keys = torch.cat([memory, torch.zeros(2, PADDING), new], dim=1)

    bias = key_bias(tuple(slots), frame, capacity * frame, PADDING, chunk * frame, weight)

    expected = reference(scores, values, frame, chunk, weight)
    torch.testing.assert_close(attention(keys[0] + bias.flatten(), keys[1]), expected, atol=1e-5, rtol=1e-5)


@given(frame=st.integers(1, 40), past=frame_counts, padding=st.sampled_from([0, PADDING]))
def test_a_weight_of_one_is_plain_attention_without_padding(frame: int, past: int, padding: int) -> None:
    bias = key_bias(tuple(range(past)), frame, 4 * frame, padding, 3 * frame, 1.0).flatten()

    assert set(bias[: past * frame].tolist()) <= {0.0}
    assert set(bias[past * frame : 4 * frame + padding].tolist()) <= {HIDDEN}
    assert set(bias[4 * frame + padding :].tolist()) == {0.0}


def test_without_slots_for_it_the_padding_is_left_out() -> None:
    bias = key_bias((0, 1, 2), 12, 36, 0, 36, 0.3).flatten()

    assert bias[:12].unique().tolist() == [0.0]  # the oldest frame
    torch.testing.assert_close(bias[12:36], torch.full((24,), math.log(0.3)))
    assert bias[36:].unique().tolist() == [0.0]
    assert len(bias) == 72
