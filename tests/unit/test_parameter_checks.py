import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.http.strict_json import JsonError
from gateway.stream.parameters.checks import ParameterContext, parse_message, validate
from gateway.stream.parameters.state import ParameterState
from streaming.specs import KREA_REALTIME_VIDEO, LONGLIVE, PASSTHROUGH, SPECS, PipelineSpec

NOWHERE = Path("/nonexistent")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [
        *("input_mode", "prompts", "prompt_interpolation_method", "spatial_interpolation_method"),
        *("transition", "denoising_step_list", "noise_scale", "noise_controller", "manage_cache", "seed"),
        *("reset_cache", "kv_cache_attention_bias", "base_seed", "lora_scales", "vace_ref_images"),
        *("first_frame_image", "last_frame_image", "images", "vace_context_scale", "vace_enabled"),
        *("vace_use_input_video", "paused", "spout_sender", "spout_receiver", "pipeline_ids", "height"),
        "recording",
    ]
)


def context(
    spec: PipelineSpec = LONGLIVE, *, vace: bool = True, assets: Path = NOWHERE, **load_params: Any
) -> ParameterContext:
    return ParameterContext(spec, {"vace_enabled": vace, **load_params}, assets)


def values(given_values: dict[str, Any], **around: Any) -> dict[str, Any]:
    validated = validate(given_values, context(**around), strict=True)
    assert validated.problems == []
    return validated.values


def codes(wish: dict[str, Any], *, strict: bool = False, **around: Any) -> list[tuple[str, list[Any]]]:
    validated = validate(wish, context(**around), strict=strict)
    return [(p["type"], p["loc"]) for p in validated.problems + validated.remarks]


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    (tmp_path / "assets" / "sub").mkdir(parents=True)
    for name in ("ref.png", "my pic.JPG", "sub/two.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / "assets" / name)
    (tmp_path / "assets" / "clip.mp4").write_bytes(b"x")
    (tmp_path / "assets-x").mkdir()
    (tmp_path / "assets-x" / "other.png").write_bytes(b"x")
    (tmp_path / "assets" / "link.png").symlink_to(tmp_path / "assets-x" / "other.png")
    return tmp_path / "assets"


# Messages


@pytest.mark.parametrize("data", ['{"paused": true}', b'{"paused": true}', '\n {"paused":true}'])
def test_text_and_bytes_are_the_same_message(data: str | bytes) -> None:
    assert parse_message(data) == {"paused": True}


@pytest.mark.parametrize(
    "data",
    [
        *("", "not json", "[1]", "null", "3", '"text"', '{"a": 1', "{'a': 1}", '{"a": 1} {"b": 2}'),
        *('{"noise_scale": NaN}', '{"noise_scale": Infinity}', '{"noise_scale": 1e999}'),
        *('{"prompts": "a\x01b"}', '{"prompts": "\\ud800"}', '{"a": ' + "[" * 5000 + "]" * 5000 + "}"),
        *('{"base_seed": ' + "9" * 5000 + "}", b"\xff\xfe", b"\x00" * 40, b"{\x80}"),
    ],
    ids=lambda data: repr(data)[:30],
)
def test_anything_but_one_json_object_is_refused(data: str | bytes) -> None:
    with pytest.raises(JsonError) as caught:
        parse_message(data)

    assert str(caught.value) != ""


@settings(max_examples=300, deadline=None)
@given(st.text() | st.binary())
def test_any_message_is_an_object_or_a_json_error(data: str | bytes) -> None:
    try:
        parsed: Any = parse_message(data)
    except JsonError:
        parsed = {}

    assert isinstance(parsed, dict)


# Validation


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        ("a", [{"text": "a", "weight": 1.0}]),
        (["a", "b"], [{"text": "a", "weight": 1.0}, {"text": "b", "weight": 1.0}]),
        ([{"text": "a", "weight": 100}, "b"], [{"text": "a", "weight": 100.0}, {"text": "b", "weight": 1.0}]),
        ([{"text": "a\nb\tc", "other": 1}], [{"text": "a\nb\tc", "weight": 1.0}]),
    ],
)
def test_prompts_may_be_a_text_texts_or_objects(given_value: Any, expected: Any) -> None:
    assert values({"prompts": given_value}) == {"prompts": expected}
    assert values({"transition": {"target_prompts": given_value}})["transition"] == {
        "target_prompts": expected,
        "num_steps": 4,
        "temporal_interpolation_method": "linear",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_mode", "video"),
        ("prompt_interpolation_method", "slerp"),
        ("denoising_step_list", [1000]),
        ("denoising_step_list", [999, 749, 1]),
        ("denoising_step_list", list(range(1000, 0, -100))),
        ("noise_scale", 0.0),
        ("noise_scale", 1.0),
        ("noise_controller", False),
        ("manage_cache", False),
        ("reset_cache", True),
        ("kv_cache_attention_bias", 0.01),
        ("base_seed", 2**63 - 1),
        ("lora_scales", [{"path": "a", "scale": -10.0}]),
        ("vace_context_scale", 2.0),
        ("vace_enabled", True),
        ("vace_use_input_video", False),
        ("vace_preprocessor", "scribble"),
        ("paused", True),
        ("prompts", [{"text": "x" * 8192, "weight": 0.0}] * 16),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_valid_values_pass_unchanged(key: str, value: Any) -> None:
    assert values({key: value}) == {key: value}


@pytest.mark.parametrize(
    ("key", "value", "kind", "below"),
    [
        ("input_mode", "image", "literal_error", []),
        ("prompts", [], "too_short", []),
        ("prompts", ["a"] * 17, "too_long", []),
        ("prompts", 5, "list_type", []),
        ("prompts", {"text": "a"}, "list_type", []),
        ("prompts", [5], "model_type", [0]),
        ("prompts", [["a"]], "model_type", [0]),
        ("prompts", [{}], "missing", [0, "text"]),
        ("prompts", [{"text": 1}], "string_type", [0, "text"]),
        ("prompts", "x" * 8193, "string_too_long", [0, "text"]),
        ("prompts", "a\u0000b", "string_control_character", [0, "text"]),
        ("prompts", "a\ud800b", "string_type", [0, "text"]),
        ("prompts", [{"text": "a", "weight": -1}], "greater_than_equal", [0, "weight"]),
        ("prompts", [{"text": "a", "weight": "much"}], "float_type", [0, "weight"]),
        ("prompts", [{"text": "a", "weight": True}], "float_type", [0, "weight"]),
        ("prompts", [{"text": "a", "weight": float("nan")}], "finite_number", [0, "weight"]),
        ("prompts", [{"text": "a", "weight": 10**400}], "float_type", [0, "weight"]),
        ("prompt_interpolation_method", "cubic", "literal_error", []),
        ("transition", {"num_steps": 2}, "missing", ["target_prompts"]),
        ("transition", {"target_prompts": []}, "too_short", ["target_prompts"]),
        ("transition", {"target_prompts": "a", "num_steps": -1}, "greater_than_equal", ["num_steps"]),
        ("transition", {"target_prompts": "a", "num_steps": 10**9}, "less_than_equal", ["num_steps"]),
        ("transition", "a", "model_type", []),
        ("denoising_step_list", [], "too_short", []),
        ("denoising_step_list", list(range(11, 0, -1)), "too_long", []),
        ("denoising_step_list", [250, 500], "not_descending", []),
        ("denoising_step_list", [500, 500], "not_descending", []),
        ("denoising_step_list", [1001, 500], "less_than_equal", [0]),
        ("denoising_step_list", [1000, 0], "greater_than_equal", [1]),
        ("denoising_step_list", [1000, 500.5], "int_type", [1]),
        ("denoising_step_list", 1000, "list_type", []),
        ("noise_scale", 7, "less_than_equal", []),
        ("noise_scale", float("inf"), "finite_number", []),
        ("noise_scale", [0.5], "float_type", []),
        ("noise_controller", "maybe", "bool_type", []),
        ("manage_cache", 2, "bool_type", []),
        ("reset_cache", {}, "bool_type", []),
        ("kv_cache_attention_bias", 0, "greater_than_equal", []),
        ("base_seed", -1, "greater_than_equal", []),
        ("base_seed", 2**63, "less_than_equal", []),
        ("seed", "x", "int_type", []),
        ("lora_scales", {"path": "a"}, "list_type", []),
        ("lora_scales", [{"path": "a", "scale": 20}], "less_than_equal", [0, "scale"]),
        ("lora_scales", [{"scale": 1}], "missing", [0, "path"]),
        ("vace_ref_images", "a.png", "list_type", []),
        ("vace_ref_images", [5], "string_type", [0]),
        ("vace_enabled", "perhaps", "bool_type", []),
        ("vace_context_scale", "strong", "float_type", []),
        ("spout_sender", True, "model_type", []),
        ("spout_sender", {"enabled": "x"}, "bool_type", ["enabled"]),
        ("pipeline_ids", "longlive", "list_type", []),
        ("height", 512, "frozen_field", []),
        ("width", 512, "frozen_field", []),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_wrong_values_are_dropped_with_a_code_and_a_place(
    key: str, value: Any, kind: str, below: list[Any]
) -> None:
    validated = validate({key: value, "paused": True}, context(), strict=False)

    assert [(p["type"], p["loc"]) for p in validated.problems] == [(kind, [key, *below])]
    assert json.dumps(validated.problems, allow_nan=False)
    assert validated.values in ({"paused": True}, {"lora_scales": [], "paused": True})


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [
        ({"seed": 7}, {"base_seed": 7}),
        ({"seed": 7, "base_seed": 9}, {"base_seed": 9}),
        ({"base_seed": 9, "seed": 7}, {"base_seed": 9}),
        ({"spatial_interpolation_method": "slerp"}, {"prompt_interpolation_method": "slerp"}),
        ({"seed": None}, {"base_seed": None}),
    ],
    ids=str,
)
def test_aliases_give_way_to_the_proper_name(given_values: Any, expected: Any) -> None:
    assert values(given_values) == expected


def test_unknown_and_foreign_keys_are_ignored_without_a_problem() -> None:
    foreign = {"nonsense": [1], "graph": {}, "node_id": "n", "tempo_source": "link"}

    assert values(foreign) == {}


@pytest.mark.parametrize(("value", "used"), [(5, 2.0), (-1, 0.0), (10**300, 2.0)])
def test_vace_scale_is_clamped_and_reported_on_the_data_channel(value: float, used: float) -> None:
    validated = validate({"vace_context_scale": value}, context(), strict=False)

    assert validated.values == {"vace_context_scale": used}
    assert [p["loc"] for p in validated.remarks] == [["vace_context_scale"]]


def test_vace_scale_out_of_range_refuses_an_offer() -> None:
    assert codes({"vace_context_scale": 3}, strict=True) == [("less_than_equal", ["vace_context_scale"])]


def test_good_lora_scales_survive_bad_neighbours() -> None:
    entries = [
        {"path": "a", "scale": 99},
        {"path": "b", "scale": 1},
        "c",
        {"path": "d", "scale": None},
        {"path": "e", "scale": float("nan")},
    ]

    validated = validate({"lora_scales": entries}, context(), strict=False)

    assert validated.values == {"lora_scales": [{"path": "b", "scale": 1.0}]}
    assert [p["loc"][:2] for p in validated.problems] == [["lora_scales", i] for i in (0, 2, 4)]


def test_scales_that_can_do_nothing_are_left_out_and_said_so() -> None:
    loras = [{"path": "a", "merge_mode": "runtime_peft"}, {"path": "b", "merge_mode": "permanent_merge"}]
    entries = [{"path": path, "scale": 0.5} for path in "abc"]

    validated = validate({"lora_scales": entries}, context(loras=loras), strict=True)
    without = validate({"lora_scales": entries}, context(loras=None), strict=True)

    assert validated.values == {"lora_scales": [{"path": "a", "scale": 0.5}]}
    assert validated.problems == []
    assert [p["loc"] for p in validated.remarks] == [["lora_scales", i, "path"] for i in (1, 2)]
    assert "load it with merge_mode runtime_peft" in validated.remarks[0]["msg"]
    assert validated.remarks[1]["msg"] == "LoRA 'c' is not loaded"
    assert len(without.remarks) == 3


def test_sinks_and_sources_of_this_machine_are_no_parameters_of_a_chunk() -> None:
    wishes = {
        "spout_sender": {"enabled": True, "name": None},
        "spout_receiver": {"enabled": False, "name": "X"},
        "output_sinks": {"spout": None, "ndi": {"enabled": True, "name": "Y"}, "syphon": None},
        "input_source": {"enabled": True, "source_type": "ndi", "source_name": None},
    }

    state = ParameterState.open(context(), wishes)

    assert state.take_wishes() == wishes
    assert state.take_wishes() == {}
    assert not wishes.keys() & (state.effective.keys() | state.take_chunk().parameters.keys())


@pytest.mark.parametrize(
    ("spec", "vace"), [(LONGLIVE, False), (KREA_REALTIME_VIDEO, False), (PASSTHROUGH, True)]
)
def test_vace_without_vace_is_remarked_but_does_not_refuse_an_offer(
    assets: Path, spec: PipelineSpec, vace: bool
) -> None:
    wish = {"vace_enabled": True, "vace_ref_images": ["ref.png"], "first_frame_image": "ref.png"}

    validated = validate(wish, context(spec, vace=vace, assets=assets), strict=True)

    assert (validated.values, validated.problems) == ({}, [])
    assert [p["type"] for p in validated.remarks] == ["unavailable"] * 3
    assert values({"vace_enabled": False, "vace_ref_images": []}, spec=spec, vace=vace) == {
        "vace_enabled": False,
        "vace_ref_images": [],
    }


@pytest.mark.parametrize(
    ("path", "relative"),
    [
        ("ref.png", "ref.png"),
        ("my pic.JPG", "my pic.JPG"),
        ("sub/two.webp", "sub/two.webp"),
        ("two.webp", "sub/two.webp"),
        ("sub/../ref.png", "ref.png"),
        ("{assets}/ref.png", "ref.png"),
    ],
)
def test_images_are_given_on_relative_to_the_assets(assets: Path, path: str, relative: str) -> None:
    name = path.format(assets=assets)

    checked = values({"vace_ref_images": [name], "first_frame_image": name}, assets=assets)

    assert checked == {"vace_ref_images": [relative], "first_frame_image": relative}


def test_image_with_a_broken_header_is_refused_and_named(assets: Path) -> None:
    (assets / "ref.png").write_bytes(bytes(64))

    validated = validate({"vace_ref_images": ["my pic.JPG", "ref.png"]}, context(assets=assets), strict=False)

    assert [(p["type"], p["msg"]) for p in validated.problems] == [
        ("undecodable", "'ref.png' cannot be decoded: upload it again")
    ]
    assert validated.values == {}


def test_image_that_would_unpack_to_gigabytes_is_refused_unread(assets: Path) -> None:
    Image.new("1", (16_000, 16_000)).save(assets / "ref.png")

    (problem,) = validate({"first_frame_image": "ref.png"}, context(assets=assets), strict=False).problems

    assert problem["type"] == "too_large"
    assert problem["msg"] == "'ref.png' has more than 64 megapixels: make it smaller"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc/passwd", "path_not_allowed"),
        ("../assets-x/other.png", "path_not_allowed"),
        ("{assets}-x/other.png", "path_not_allowed"),
        ("link.png", "path_not_allowed"),
        ("clip.mp4", "path_not_allowed"),
        (".", "path_not_allowed"),
        ("nothere.png", "file_not_found"),
        ("sub/ref.png", "file_not_found"),
        ("a" * 300 + ".png", "file_not_found"),
        ("a\nb.png", "string_control_character"),
        ("", "string_too_short"),
    ],
)
def test_images_from_elsewhere_are_refused(assets: Path, path: str, kind: str) -> None:
    name = path.format(assets=assets)

    assert codes({"vace_ref_images": ["ref.png", name]}, assets=assets) == [(kind, ["vace_ref_images", 1])]
    assert codes({"images": [name]}, assets=assets) == [(kind, ["images", 0])]
    assert codes({"last_frame_image": name}, assets=assets) == [(kind, ["last_frame_image"])]


@settings(max_examples=500, deadline=None)
@given(given_values=st.dictionaries(NAMES | st.text(), JSON, max_size=6), spec=st.sampled_from(list(SPECS)))
def test_any_json_is_validated_without_an_exception(given_values: dict[str, Any], spec: str) -> None:
    state = ParameterState(context(SPECS[spec]))

    problems = state.merge(given_values)

    assert json.dumps(problems, allow_nan=False).encode()
    assert json.dumps(state.take_chunk().parameters, allow_nan=False).encode()
    assert json.dumps(state.effective, allow_nan=False).encode()


def test_a_pause_that_is_no_boolean_is_refused() -> None:
    assert codes({"paused": "now"}) == [("bool_type", ["paused"])]
