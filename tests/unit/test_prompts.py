"""Prompts over time: what is encoded, what a chunk shows, how transitions end (pipelines-common.md 4, 12)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from streaming.conditioning.blending import blend, interpolate, normalised_weights, slerp
from streaming.conditioning.prompts import PromptRequest, Prompts, PromptState, TransitionRequest
from streaming.errors import WanstreamError
from streaming.specs import Interpolation

TEXTS = {"A": 0, "B": 1, "C": 2, "nearly A": 0}


@dataclass
class Encoder:
    """Texts to embeddings along different axes; remembers the batches."""

    batches: list[list[str]] = field(default_factory=list)

    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        self.batches.append(list(texts))
        return [self.of(text) for text in texts]

    @staticmethod
    def of(text: str) -> Tensor:
        embedding = torch.zeros(1, 2, 3)
        embedding[:, :, TEXTS[text]] = 1.001 if text == "nearly A" else 1.0
        return embedding


@dataclass
class Talk:
    """A conditioning, chunk after chunk."""

    encode: Encoder = field(default_factory=Encoder)
    state: PromptState = field(default_factory=PromptState)

    def ask(
        self,
        prompts: str | Prompts,
        to: str | Prompts | None = None,
        steps: int = 0,
        method: Interpolation = "linear",
        mix: Interpolation = "linear",
    ) -> PromptState:
        transition = None if to is None else TransitionRequest(listed(to), steps, method)
        self.state = self.state.next(PromptRequest(listed(prompts), mix, transition), self.encode)
        return self.state

    def forget(self) -> None:
        """What the loop does when a chunk begins with `init_cache`."""
        self.state = PromptState()

    def shows(self, text: str) -> bool:
        assert self.state.embedding is not None
        return torch.equal(self.state.embedding, Encoder.of(text))


def listed(prompts: str | Prompts) -> Prompts:
    return ((prompts, 1.0),) if isinstance(prompts, str) else prompts


def between(source: str, target: str, t: float) -> Tensor:
    return torch.lerp(Encoder.of(source), Encoder.of(target), t)


def test_the_first_prompts_are_shown_at_once() -> None:
    talk = Talk()

    first = talk.ask("A")

    assert talk.shows("A")
    assert first.updated
    assert not first.in_transition


def test_the_same_prompts_are_encoded_once_and_change_nothing() -> None:
    talk = Talk()
    talk.ask("A")

    second = talk.ask("A")

    assert talk.encode.batches == [["A"]]
    assert not second.updated


def test_all_texts_of_a_list_are_encoded_in_one_batch() -> None:
    talk = Talk()

    talk.ask((("A", 1.0), ("B", 1.0), ("C", 1.0)))

    assert talk.encode.batches == [["A", "B", "C"]]


def test_a_weight_alone_blends_anew() -> None:
    talk = Talk()
    talk.ask((("A", 1.0), ("B", 1.0)))

    changed = talk.ask((("A", 1.0), ("B", 3.0)))

    assert changed.updated
    assert changed.embedding is not None
    torch.testing.assert_close(changed.embedding, blend([Encoder.of("A"), Encoder.of("B")], [1, 3], "linear"))


def test_d2_and_d8_the_blending_method_works_and_blends_anew_when_it_changes() -> None:
    talk = Talk()
    both: Prompts = (("A", 1.0), ("B", 1.0))
    talk.ask(both)

    changed = talk.ask(both, mix="slerp")

    assert changed.updated
    assert changed.embedding is not None
    torch.testing.assert_close(changed.embedding, slerp(Encoder.of("A"), Encoder.of("B"), 0.5))


@pytest.mark.parametrize("prompts", [(("A", 1.0),), (("A", 1.0), ("B", 1.0), ("C", 1.0))])
def test_the_blending_method_changes_nothing_unless_there_are_two_prompts(prompts: Prompts) -> None:
    talk = Talk()
    talk.ask(prompts)

    assert not talk.ask(prompts, mix="slerp").updated


def test_a_method_change_after_a_transition_does_not_bring_the_old_prompts_back() -> None:
    talk = Talk()
    target: Prompts = (("B", 1.0), ("C", 1.0))
    talk.ask("A")
    talk.ask("A", to=target, steps=0)

    talk.ask("A", mix="slerp")

    torch.testing.assert_close(talk.state.embedding, slerp(Encoder.of("B"), Encoder.of("C"), 0.5))


def test_a_transition_begins_at_the_source_and_ends_at_the_target() -> None:
    talk = Talk()
    talk.ask("A")

    chunks = [talk.ask("A", to="B", steps=3) for _ in range(3)]

    for chunk, t in zip(chunks, (0.0, 0.5, 1.0), strict=True):
        torch.testing.assert_close(chunk.embedding, between("A", "B", t))
    assert [chunk.updated for chunk in chunks] == [True] * 3
    assert [chunk.in_transition for chunk in chunks] == [True, True, False]
    assert [chunk.was_in_transition for chunk in chunks] == [False, True, True]


def test_the_same_transition_sent_again_continues_and_encodes_nothing() -> None:
    talk = Talk()
    talk.ask("A")

    for _ in range(4):
        talk.ask("A", to="B", steps=4)

    assert talk.encode.batches == [["A"], ["B"]]
    assert talk.shows("B")


def test_prompts_from_before_a_finished_transition_do_not_bring_them_back() -> None:
    talk = Talk()
    talk.ask("A")
    talk.ask("A", to="B", steps=2)
    talk.ask("A", to="B", steps=2)

    after = talk.ask("A")

    assert not after.updated
    assert talk.shows("B")


def test_another_target_in_mid_transition_starts_from_the_current_point() -> None:
    talk = Talk()
    talk.ask("A")
    talk.ask("A", to="B", steps=3)
    middle = talk.ask("A", to="B", steps=3).embedding

    turned = [talk.ask("A", to="C", steps=2).embedding for _ in range(2)]

    assert middle is not None
    torch.testing.assert_close(turned[0], middle)
    torch.testing.assert_close(turned[1], Encoder.of("C"))


def test_new_prompts_in_mid_transition_cancel_it_and_snap() -> None:
    talk = Talk()
    talk.ask("A")
    talk.ask("A", to="B", steps=5)

    cancelled = talk.ask("C")

    assert talk.shows("C")
    assert cancelled.was_in_transition
    assert not cancelled.in_transition


def test_a_transition_that_is_no_longer_sent_snaps_back_to_the_old_prompts() -> None:
    talk = Talk()
    talk.ask("A")
    talk.ask("A", to="B", steps=5)
    talk.ask("A", to="B", steps=5)

    after = talk.ask("A")

    assert after.updated
    assert talk.shows("A")


def test_after_a_reset_the_target_of_a_transition_is_shown_at_once() -> None:
    talk = Talk()
    talk.ask("A")
    talk.ask("A", to="B", steps=5)

    talk.forget()
    after = talk.ask("A", to="B", steps=5)

    assert talk.shows("B")
    assert after.updated
    assert not after.in_transition


@pytest.mark.parametrize("steps", [0, 1])
def test_d3_a_transition_of_one_step_or_none_snaps_to_the_target(steps: int) -> None:
    talk = Talk()
    talk.ask("A")

    after = talk.ask("A", to="B", steps=steps)

    assert talk.shows("B")
    assert not after.in_transition


def test_a_transition_to_nearly_the_same_embedding_changes_nothing() -> None:
    talk = Talk()
    talk.ask("A")

    after = talk.ask("A", to="nearly A", steps=4)

    assert talk.shows("A")
    assert not after.updated
    assert not after.in_transition


def test_a_chunk_without_prompts_is_refused() -> None:
    with pytest.raises(WanstreamError, match="prompt is needed"):
        Talk().ask(())


def test_a_failed_encoding_leaves_the_conditioning_as_it_was() -> None:
    talk = Talk()
    before = talk.ask("A")

    with pytest.raises(KeyError):
        talk.ask("unknown")

    assert talk.state is before
    assert not talk.ask("A").updated


embeddings = st.lists(st.floats(-4, 4, allow_nan=False, width=32), min_size=6, max_size=6).map(
    lambda values: torch.tensor(values).reshape(1, 2, 3)
)


@settings(deadline=None)
@given(source=embeddings, target=embeddings, method=st.sampled_from(["linear", "slerp"]))
def test_both_ends_of_a_way_are_exact(source: Tensor, target: Tensor, method: Interpolation) -> None:
    assert torch.equal(interpolate(source, target, 0.0, method), source)
    assert torch.equal(interpolate(source, target, 1.0, method), target)


@settings(deadline=None)
@given(source=embeddings, scale=st.floats(0.1, 3), t=st.floats(0, 1))
def test_d4_parallel_tokens_are_interpolated_linearly(source: Tensor, scale: float, t: float) -> None:
    target = source * scale

    result = slerp(source, target, t)

    torch.testing.assert_close(result, (1 - t) * source + t * target, atol=1e-3, rtol=1e-3)


@settings(deadline=None)
@given(weights=st.lists(st.floats(0, 100), min_size=1, max_size=16))
def test_weights_sum_to_one(weights: list[float]) -> None:
    assert sum(normalised_weights(weights)) == pytest.approx(1)


@settings(deadline=None)
@given(one=embeddings, other=embeddings, share=st.floats(0, 1))
def test_a_linear_blend_keeps_the_mean_norm(one: Tensor, other: Tensor, share: float) -> None:
    straight = (1 - share) * one + share * other
    assume(straight.norm() > 1e-3)

    mixed = blend([one, other], [1 - share, share], "linear")

    expected = (1 - share) * one.norm() + share * other.norm()
    torch.testing.assert_close(mixed.norm(), expected, atol=1e-3, rtol=1e-3)
