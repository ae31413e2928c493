from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.errors import ApiError, ValidationFailed
from gateway.stream.parameters.checks import ParameterContext
from gateway.stream.parameters.state import ChunkParameters, ParameterState, normalised
from streaming.specs import KREA_REALTIME_VIDEO, LONGLIVE, MEMFLOW, PASSTHROUGH, PipelineSpec

NOWHERE = Path("/nonexistent")


def context(
    spec: PipelineSpec = LONGLIVE, *, vace: bool = True, assets: Path = NOWHERE, **load_params: Any
) -> ParameterContext:
    return ParameterContext(spec, {"vace_enabled": vace, **load_params}, assets)


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "ref.png")
    return tmp_path


# Offers


def test_offer_with_wrong_values_is_refused_and_located_in_the_body() -> None:
    with pytest.raises(ValidationFailed) as caught:
        ParameterState.open(context(), {"noise_scale": 3, "prompts": [], "paused": True})

    assert [p["loc"] for p in caught.value.problems] == [
        ["body", "initialParameters", "noise_scale"],
        ["body", "initialParameters", "prompts"],
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a (red:1.3) ball", "(red:1.3)"),
        ("a ((red)) ball", "((red))"),
        ("a [red:blue:0.5] ball", "[red:blue:0.5]"),
        ("a ball <lora:style:0.8>", "<lora:style:0.8>"),
        ("(a) <LORA:style:.8>", "<LORA:style:.8>"),
        ("a ball (red, at 12:30)", None),
        ("a (red) ball: 3 of them [sic], a < b: c > d", None),
        ("(" * 4000 + "a:" * 2000, None),
    ],
)
def test_a_notation_of_other_programs_is_hinted_at(text: str, named: str | None) -> None:
    state = ParameterState.open(context(), {"prompts": text})

    hints = [p["msg"] for p in state.remarks]

    assert len(hints) == (named is not None)
    assert named is None or f"'{named}' is read as plain words" in hints[0]
    assert state.effective["prompts"][0]["text"] == text


def test_a_notation_is_hinted_at_once_in_a_session() -> None:
    state = ParameterState.open(context(), {"prompts": "a ball"})

    told = [
        state.merge({"transition": {"target_prompts": "(red:1.1) ball"}}),
        state.merge({"prompts": "(red:1.2) ball"}),
        state.merge({"prompts": "(red:1.3) ball", "noise_scale": 9}),
    ]

    assert [[p["type"] for p in problems] for problems in told] == [["plain_words"], [], ["less_than_equal"]]


def test_a_pipeline_without_prompts_gives_no_hint() -> None:
    state = ParameterState.open(context(PASSTHROUGH), {"prompts": "(red:1.3) ball"})

    assert state.remarks == []


def test_offer_for_another_pipeline_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        ParameterState.open(context(), {"pipeline_ids": ["memflow"]})

    assert caught.value.status == 400
    assert "memflow" in caught.value.detail


@pytest.mark.parametrize(
    "initial", [None, {}, {"pipeline_ids": ["longlive"]}, {"noise_scale": None}], ids=str
)
def test_offer_without_parameters_gets_the_defaults(initial: Any) -> None:
    state = ParameterState.open(context(base_seed=7), initial)

    assert state.effective == {
        "input_mode": "text",
        "prompts": [{"text": "", "weight": 1.0}],
        "prompt_interpolation_method": "linear",
        "transition": None,
        "denoising_step_list": [1000, 750, 500, 250],
        "noise_scale": 0.7,
        "noise_controller": True,
        "manage_cache": True,
        "kv_cache_attention_bias": 1.0,
        "base_seed": 7,
        "vace_context_scale": 1.0,
        "vace_enabled": True,
        "vace_use_input_video": True,
        "vace_preprocessor": "none",
        "paused": False,
    }


def test_offer_keeps_its_remarks_for_the_client() -> None:
    state = ParameterState.open(context(PASSTHROUGH), {"vace_enabled": True})

    assert [p["loc"] for p in state.remarks] == [["vace_enabled"]]


# Over time


def streaming(initial: dict[str, Any] | None = None, **around: Any) -> ParameterState:
    """A state whose first chunk has succeeded."""
    state = ParameterState.open(context(**around), initial or {"prompts": "a"})
    state.take_chunk()
    state.chunk_succeeded({})
    return state


def news(chunk: ChunkParameters) -> dict[str, Any]:
    """What a chunk is told that the last good one was not; `init_cache` only where it is wanted."""
    fresh = {"init_cache": True} if chunk.parameters["init_cache"] else {}
    return {key: chunk.parameters[key] for key in chunk.changed} | fresh


def next_chunk(state: ParameterState, **meta: Any) -> dict[str, Any]:
    """What is new in the next chunk, which is a good one."""
    chunk = state.take_chunk()
    state.chunk_succeeded(meta)
    return news(chunk)


def prompt(text: str, weight: float = 1.0) -> list[dict[str, Any]]:
    return [{"text": text, "weight": weight}]


EVERYTHING = {
    "input_mode": "text",
    "prompts": prompt("a"),
    "prompt_interpolation_method": "linear",
    "transition": None,
    "denoising_step_list": [1000, 750, 500, 250],
    "noise_scale": 0.7,
    "noise_controller": True,
    "manage_cache": True,
    "base_seed": 42,
    "vace_context_scale": 1.0,
    "vace_enabled": True,
    "vace_use_input_video": True,
    "vace_preprocessor": "none",
}


def test_every_chunk_is_told_all_that_is_in_force() -> None:
    state = ParameterState.open(context(), {"prompts": "a"})

    first = state.take_chunk()
    state.chunk_succeeded({})
    state.merge({"noise_scale": 0.5, "manage_cache": True})
    second = state.take_chunk()

    assert first.parameters == {**EVERYTHING, "init_cache": True}
    assert first.changed == tuple(sorted(EVERYTHING))
    assert second.parameters == {**EVERYTHING, "noise_scale": 0.5, "init_cache": False}
    assert second.changed == ("noise_scale",)


def test_passthrough_is_told_only_the_mode() -> None:
    initial = {"prompts": "a", "noise_scale": 0.1, "input_mode": "text"}

    state = ParameterState.open(context(PASSTHROUGH), initial)

    assert next_chunk(state) == {"input_mode": "video", "init_cache": True}
    assert state.input_mode == "video"


def test_only_krea_is_told_the_attention_bias() -> None:
    krea = ParameterState.open(context(KREA_REALTIME_VIDEO), {})

    assert next_chunk(krea)["kv_cache_attention_bias"] == 0.3
    assert "kv_cache_attention_bias" not in next_chunk(ParameterState.open(context(), {}))


def test_a_burst_is_merged_and_the_last_value_wins() -> None:
    state = streaming()

    for i in range(500):
        state.merge({"vace_context_scale": i / 500, "noise_scale": 1 - i / 500})

    assert next_chunk(state) == {"vace_context_scale": 499 / 500, "noise_scale": 1 - 499 / 500}


def test_null_goes_back_to_the_default() -> None:
    state = streaming({"vace_context_scale": 0.2, "denoising_step_list": [700, 500]})

    state.merge({"vace_context_scale": None, "denoising_step_list": None})

    assert next_chunk(state) == {
        "vace_context_scale": 1.0,
        "denoising_step_list": [1000, 750, 500, 250],
    }


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([100, 300], [0.25, 0.75]),
        ([0, 0], [0.5, 0.5]),
        ([0.7, 0.3], [0.7, 0.3]),
        ([1e308, 1e308], [0.5, 0.5]),
    ],
)
def test_weights_of_a_chunk_sum_to_one(weights: list[float], shares: list[float]) -> None:
    prompts = [{"text": str(i), "weight": weight} for i, weight in enumerate(weights)]

    chunk = next_chunk(ParameterState.open(context(), {"prompts": prompts}))

    assert [p["weight"] for p in chunk["prompts"]] == pytest.approx(shares)


@given(st.lists(st.floats(min_value=0, allow_infinity=False), min_size=1, max_size=16))
def test_any_weights_are_normalised(weights: list[float]) -> None:
    shares = [p["weight"] for p in normalised([{"text": "", "weight": w} for w in weights])]

    assert sum(shares) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares)


def test_reset_is_ored_and_used_for_one_chunk() -> None:
    state = streaming()

    state.merge({"reset_cache": True})
    state.merge({"reset_cache": False})

    assert state.reset_pending is True
    assert [next_chunk(state), next_chunk(state)] == [{"init_cache": True}, {}]


def test_reset_false_has_no_effect_not_even_on_the_first_chunk() -> None:
    state = ParameterState.open(context(), {"reset_cache": False})

    assert next_chunk(state)["init_cache"] is True
    state.merge({"reset_cache": False})
    assert next_chunk(state) == {}


def test_first_chunk_starts_afresh_until_one_has_succeeded() -> None:
    state = ParameterState.open(context(), {"prompts": "a"})
    first = state.take_chunk()
    state.chunk_failed()

    again = state.take_chunk()

    assert again == first
    assert again.parameters["init_cache"] is True


def test_a_reset_survives_a_failed_chunk() -> None:
    state = streaming()
    state.merge({"reset_cache": True})
    state.take_chunk()

    assert state.chunk_failed() == []
    assert next_chunk(state) == {"init_cache": True}


def test_change_of_the_input_mode_starts_afresh() -> None:
    state = streaming()

    state.merge({"input_mode": "video"})

    assert [next_chunk(state), next_chunk(state)] == [{"input_mode": "video", "init_cache": True}, {}]


def test_lora_scales_are_merged_by_path_and_sent_once() -> None:
    state = streaming()

    state.merge({"lora_scales": [{"path": "a", "scale": 0.1}, {"path": "b", "scale": 0.2}]})
    state.merge({"lora_scales": [{"path": "a", "scale": 0.3}]})

    assert next_chunk(state) == {"lora_scales": [{"path": "a", "scale": 0.3}, {"path": "b", "scale": 0.2}]}
    assert next_chunk(state) == {}


def test_images_go_to_one_chunk_and_an_empty_list_takes_them_back(assets: Path) -> None:
    state = streaming(assets=assets)

    state.merge({"vace_ref_images": ["ref.png"], "first_frame_image": "ref.png"})
    state.merge({"first_frame_image": None})
    sent = [next_chunk(state), next_chunk(state)]
    state.merge({"vace_ref_images": ["ref.png"]})
    state.merge({"vace_ref_images": []})

    assert sent == [{"vace_ref_images": ["ref.png"]}, {}]
    assert next_chunk(state) == {}


def test_pause_acts_at_once_and_is_no_parameter_of_a_chunk() -> None:
    state = streaming()

    for _ in range(2):
        state.merge({"paused": True})

    assert state.paused is True
    assert next_chunk(state) == {}
    state.merge({"paused": None})
    assert state.paused is False


@pytest.mark.parametrize(
    ("message", "outdated"),
    [
        ({"prompts": "b"}, True),
        ({"prompts": [{"text": "a", "weight": 7}]}, False),  # alone, a prompt has all the weight anyway
        ({"transition": {"target_prompts": "b"}}, True),
        ({"noise_scale": 0.1}, True),
        ({"reset_cache": True}, True),
        ({"reset_cache": False}, False),
        ({"paused": True}, False),
        ({"lora_scales": [{"path": "a", "scale": 0.1}]}, True),
        ({"unheard_of": 1}, False),
        ({"noise_scale": "much"}, False),
    ],
)
def test_a_message_that_tells_something_new_makes_the_chunk_in_the_making_outdated(
    message: dict[str, Any], outdated: bool
) -> None:
    state = streaming({"prompts": "a"})
    state.take_chunk()
    before = state.outdated

    state.merge(message)

    assert not before
    assert state.outdated is outdated


def test_without_a_chunk_in_the_making_nothing_is_outdated() -> None:
    state = streaming({"prompts": "a"})

    state.merge({"prompts": "b"})

    assert not state.outdated


def test_a_chunk_that_begins_again_is_told_all_that_the_first_try_was_told_and_what_came_since() -> None:
    state = streaming({"prompts": "a"})
    state.merge({"noise_scale": 0.1, "reset_cache": True, "lora_scales": [{"path": "a", "scale": 0.1}]})
    state.take_chunk()

    state.merge({"prompts": "b"})

    assert next_chunk(state) == {
        "prompts": prompt("b"),
        "noise_scale": 0.1,
        "lora_scales": [{"path": "a", "scale": 0.1}],
        "init_cache": True,
    }


# Transitions


def test_a_transition_runs_to_its_end_and_its_target_becomes_the_prompt() -> None:
    state = streaming({"prompts": "a"})
    state.merge({"transition": {"target_prompts": "b", "num_steps": 3}})

    during = [next_chunk(state, transition_active=True), next_chunk(state, transition_active=True)]
    shown = state.effective
    last = next_chunk(state, transition_active=False)

    assert during[0]["transition"]["target_prompts"] == prompt("b")
    assert (during[1], last) == ({}, {})
    assert (shown["prompts"], shown["transition"]["num_steps"]) == (prompt("a"), 3)
    assert (state.effective["prompts"], state.effective["transition"]) == (prompt("b"), None)
    assert next_chunk(state) == {"prompts": prompt("b"), "transition": None}
    assert next_chunk(state) == {}


def test_after_a_transition_the_old_prompt_can_be_set_again() -> None:
    state = streaming({"prompts": "a"})
    state.merge({"transition": {"target_prompts": "b", "num_steps": 0}})
    next_chunk(state)
    next_chunk(state)

    state.merge({"prompts": "a"})

    assert next_chunk(state) == {"prompts": prompt("a")}


@pytest.mark.parametrize("new", ["c", "a"])
def test_prompts_without_a_transition_cancel_a_running_one(new: str) -> None:
    state = streaming({"prompts": "a"})
    state.merge({"transition": {"target_prompts": "b", "num_steps": 9}})
    next_chunk(state, transition_active=True)

    state.merge({"prompts": new})

    assert state.effective["transition"] is None
    told = state.take_chunk().parameters
    assert (told["prompts"], told["transition"]) == (prompt(new), None)


def test_prompts_cancel_a_transition_that_no_chunk_has_seen() -> None:
    state = streaming({"prompts": "a"})

    state.merge({"transition": {"target_prompts": "b"}})
    state.merge({"prompts": "c"})

    assert next_chunk(state) == {"prompts": prompt("c")}


def test_prompts_beside_a_transition_do_not_cancel_it() -> None:
    state = streaming({"prompts": "a"})

    state.merge({"prompts": "b", "transition": {"target_prompts": "b", "num_steps": 2}})

    assert next_chunk(state, transition_active=True)["transition"]["num_steps"] == 2
    assert next_chunk(state) == {}
    assert state.effective["prompts"] == prompt("b")


def test_new_prompts_that_arrive_while_the_last_chunk_of_a_transition_is_made_stay() -> None:
    state = streaming({"prompts": "a"})
    state.merge({"transition": {"target_prompts": "b", "num_steps": 1}})
    state.take_chunk()

    state.merge({"prompts": "c"})
    state.chunk_succeeded({"transition_active": False})

    assert next_chunk(state) == {"prompts": prompt("c"), "transition": None}


def test_a_transition_that_replaces_another_one_is_not_ended_by_it() -> None:
    state = streaming({"prompts": "a"})
    state.merge({"transition": {"target_prompts": "b", "num_steps": 1}})
    state.take_chunk()

    state.merge({"transition": {"target_prompts": "c", "num_steps": 5}})
    state.chunk_succeeded({"transition_active": False})

    assert next_chunk(state, transition_active=True)["transition"]["target_prompts"] == prompt("c")
    assert state.effective["transition"]["num_steps"] == 5


# Failures and reloads


def test_a_failed_chunk_takes_back_what_was_new_in_it_and_says_so_once(assets: Path) -> None:
    state = streaming({"prompts": "a", "noise_scale": 0.3}, assets=assets)
    state.merge({"prompts": "bad", "noise_scale": None, "vace_ref_images": ["ref.png"]})
    state.merge({"lora_scales": [{"path": "a", "scale": 1}], "manage_cache": True})
    state.take_chunk()

    reverted = state.chunk_failed()

    assert reverted == ["lora_scales", "manage_cache", "noise_scale", "prompts", "vace_ref_images"]
    assert (state.effective["prompts"], state.effective["noise_scale"]) == (prompt("a"), 0.3)
    assert news(state.take_chunk()) == {}
    assert state.chunk_failed() == []


def test_values_that_came_while_the_chunk_failed_stay() -> None:
    state = streaming({"prompts": "a"})
    state.merge({"prompts": "bad", "noise_scale": 0.1})
    state.take_chunk()
    state.merge({"prompts": "newer", "vace_context_scale": 0.5})

    assert state.chunk_failed() == ["noise_scale"]
    assert next_chunk(state) == {"prompts": prompt("newer"), "vace_context_scale": 0.5}


def test_before_the_first_good_chunk_there_is_nothing_to_go_back_to() -> None:
    state = ParameterState.open(context(), {"prompts": "a"})
    state.take_chunk()

    assert state.chunk_failed() == []
    assert state.effective["prompts"] == prompt("a")


def test_a_failed_chunk_does_not_bring_back_a_transition_that_has_ended() -> None:
    state = streaming({"prompts": "a"})
    state.merge({"transition": {"target_prompts": "b", "num_steps": 0}})
    next_chunk(state)
    state.merge({"noise_scale": 0.1})
    state.take_chunk()

    assert state.chunk_failed() == ["noise_scale"]
    assert (state.effective["prompts"], state.effective["transition"]) == (prompt("b"), None)


def test_a_failed_chunk_does_not_end_a_running_transition() -> None:
    state = streaming({"prompts": "a"})
    state.merge({"transition": {"target_prompts": "b", "num_steps": 9}})
    next_chunk(state, transition_active=True)
    state.take_chunk()

    assert state.chunk_failed() == []
    assert state.effective["transition"]["num_steps"] == 9


def test_one_shots_of_a_chunk_that_was_never_reported_are_sent_again(assets: Path) -> None:
    state = streaming(assets=assets)
    wish = {"reset_cache": True, "vace_ref_images": ["ref.png"], "lora_scales": [{"path": "a", "scale": 1.0}]}
    state.merge(wish)

    cancelled = state.take_chunk()

    assert next_chunk(state) == news(cancelled)
    assert next_chunk(state) == {}


def test_a_new_stream_on_the_same_load_is_told_the_scales_again_and_one_on_another_is_not() -> None:
    a, b = ({"path": p, "scale": 1.0, "merge_mode": "runtime_peft"} for p in "ab")
    scales = [{"path": p, "scale": 0.3} for p in "ab"]
    state = ParameterState(context(loras=[a, b]))
    state.merge({"lora_scales": scales})
    next_chunk(state)

    state.rebase(LONGLIVE, {"loras": [a, b]})
    again = next_chunk(state)
    state.rebase(LONGLIVE, {"loras": [a, {**b, "scale": 0.9}]})
    renewed = next_chunk(state)
    state.rebase(LONGLIVE, {"loras": None})

    assert again["lora_scales"] == scales
    assert renewed["lora_scales"] == scales[:1]  # the other one's scale is that of the new load
    assert "lora_scales" not in next_chunk(state)


def test_another_pipeline_is_told_everything_and_starts_afresh() -> None:
    state = streaming({"prompts": "a", "noise_scale": 0.2, "input_mode": "video"})

    state.rebase(PASSTHROUGH, {"height": 512, "width": 512})
    through = next_chunk(state)
    state.rebase(MEMFLOW, {"vace_enabled": False, "base_seed": 7})
    back = next_chunk(state)

    assert through == {"input_mode": "video", "init_cache": True}
    assert back["init_cache"] is True
    assert (back["prompts"], back["noise_scale"], back["base_seed"]) == (prompt("a"), 0.2, 7)
    assert "vace_context_scale" not in back


# Any order of events

UPDATES = st.fixed_dictionaries(
    {},
    optional={
        "prompts": st.sampled_from(["a", "b", None]),
        "transition": st.sampled_from(
            [None, {"target_prompts": "b"}, {"target_prompts": "c", "num_steps": 0}]
        ),
        "noise_scale": st.sampled_from([0.1, 0.2, 9, None]),
        "input_mode": st.sampled_from(["text", "video"]),
        "manage_cache": st.booleans(),
    },
)
EVENTS = st.lists(
    UPDATES | st.sampled_from(["good", "good, in transition", "failed", "not reported"]), max_size=25
)


@settings(max_examples=400, deadline=None)
@given(EVENTS)
def test_what_changed_adds_up_to_what_is_in_force(events: list[Any]) -> None:
    state = ParameterState(context())
    known: dict[str, Any] = {}

    for event in [*events, "good, in transition"]:
        if isinstance(event, dict):
            state.merge(event)
            continue
        chunk = state.take_chunk()
        if event == "failed":
            state.chunk_failed()
        elif event != "not reported":
            state.chunk_succeeded({"transition_active": event == "good, in transition"})
            known |= {key: chunk.parameters[key] for key in chunk.changed}
            assert {**known, "init_cache": chunk.parameters["init_cache"]} == chunk.parameters


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["scale", "reset", "good", "failed", "not reported"]), max_size=25))
def test_one_shots_reach_exactly_one_finished_chunk(events: list[str]) -> None:
    state = streaming()
    wanted: list[float] = []
    finished: list[float] = []
    reset_wanted = False

    for number, event in enumerate([*events, "good"]):
        if event == "scale":
            state.merge({"lora_scales": [{"path": str(number), "scale": number / 10}]})
            wanted.append(number / 10)
        elif event == "reset":
            state.merge({"reset_cache": True})
            reset_wanted = True
        else:
            chunk = state.take_chunk()
            assert chunk.parameters["init_cache"] is reset_wanted
            if event != "not reported":
                finished += [entry["scale"] for entry in chunk.parameters.get("lora_scales", [])]
            if event == "good":
                state.chunk_succeeded({})
                reset_wanted = False
            elif event == "failed":
                state.chunk_failed()

    assert sorted(finished) == wanted


@settings(max_examples=200, deadline=None)
@given(st.lists(UPDATES, max_size=10))
def test_the_last_valid_value_of_a_key_wins(updates: list[dict[str, Any]]) -> None:
    state = ParameterState(context())

    for update in updates:
        state.merge(update)

    for key, default in (("noise_scale", 0.7), ("manage_cache", True), ("input_mode", "text")):
        given_values = [update[key] for update in updates if key in update and update[key] != 9]
        last = given_values[-1] if given_values else None
        assert state.effective[key] == (default if last is None else last)
