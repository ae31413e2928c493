import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ApiError, Problem, ValidationFailed
from gateway.pipelines.load_params import LoadContext, LoadRequest, lora_adapters, parse_load_request
from gateway.serving.interface import Availability, Combination
from streaming.engines.load_plan import VacePlan
from streaming.engines.served import with_choices
from streaming.specs import SPECS, PipelineSpec

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
BODY_KEYS = st.sampled_from(["pipeline_id", "pipeline_ids", "pipelines", "load_params"])
KEYS = st.sampled_from(
    [
        *("height", "width", "seed", "base_seed", "quantization", "vace_enabled", "vae_type", "loras"),
        *("lora_merge_mode", "lora_merge_strategy", "vace_context_scale", "unknown"),
    ]
)


def context(
    tmp_path: Path | None = None, *, vram_gib: float | None = None, **availability: Any
) -> LoadContext:
    here = Availability(**{"available": True, **availability})
    return LoadContext(
        lambda spec, backend: here, [tmp_path] if tmp_path else [Path("/nonexistent")], vram_gib
    )


def load(pipeline: str, params: Any = None, **around: Any) -> LoadRequest:
    return parse_load_request({"pipeline_id": pipeline, "load_params": params}, context(**around))


def refused(body: dict[str, Any], **around: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_load_request(body, context(**around))
    return caught.value


def problems(body: dict[str, Any]) -> list[Problem]:
    with pytest.raises(ValidationFailed) as caught:
        parse_load_request(body, context())
    return caught.value.problems


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    for name in ("style.safetensors", "sub/two.SAFETENSORS", "notes.txt"):
        (tmp_path / "lora" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lora" / name).write_bytes(b"x")
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    (tmp_path / "lora" / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (tmp_path / "lora" / "loop.safetensors").symlink_to(tmp_path / "lora" / "loop.safetensors")
    return tmp_path / "lora"


# Which pipeline


@pytest.mark.parametrize(
    "body",
    [
        {"pipeline_id": "longlive", "load_params": {"height": 480}},
        {"pipeline_ids": ["longlive"], "load_params": {"height": 480}},
        {"pipeline_ids": ["longlive", "longlive"], "load_params": {"height": 480}},
        {"pipelines": [{"node_id": "n", "pipeline_id": "longlive", "load_params": {"height": 480}}]},
        {"pipelines": [{"node_id": "n", "pipeline_id": "longlive"}], "load_params": {"height": 480}},
        {"pipeline_id": "longlive", "pipeline_ids": ["longlive"], "load_params": {"height": 480}},
        {"pipeline_id": "longlive", "load_params": {"height": 480}, "user_id": 5, "connection_info": []},
    ],
    ids=str,
)
def test_all_forms_of_the_request_mean_the_same(body: dict[str, Any]) -> None:
    request = parse_load_request(body, context())

    assert (request.spec.id, request.params["height"], request.warnings) == ("longlive", 480, [])


@pytest.mark.parametrize(
    "body", [{}, {"pipeline_ids": []}, {"pipelines": []}, {"pipeline_id": None}], ids=str
)
def test_a_request_without_a_pipeline_names_the_keys_to_use(body: dict[str, Any]) -> None:
    error = refused(body)

    assert error.status == 400
    for key in ("pipeline_id", "pipeline_ids", "pipelines"):
        assert f"'{key}'" in error.detail


@pytest.mark.parametrize(
    "body",
    [
        {"pipeline_id": "longlive", "pipeline_ids": ["memflow"]},
        {"pipeline_id": "longlive", "pipeline_ids": []},
        {"pipeline_ids": ["longlive"], "pipelines": [{"node_id": "n", "pipeline_id": "memflow"}]},
    ],
    ids=str,
)
def test_forms_that_disagree_are_refused(body: dict[str, Any]) -> None:
    assert refused(body).status == 400


def test_chaining_is_refused_with_the_extra_ids() -> None:
    error = refused({"pipeline_ids": ["longlive", "memflow", "passthrough"]})

    assert error.status == 400
    assert "memflow, passthrough" in error.detail


def test_one_pipeline_with_two_parameter_sets_is_refused() -> None:
    nodes = [
        {"node_id": str(height), "pipeline_id": "longlive", "load_params": {"height": height}}
        for height in (320, 480)
    ]

    assert refused({"pipelines": nodes}).status == 400


def test_parameters_of_the_node_win_over_those_beside_it() -> None:
    node = {"node_id": "n", "pipeline_id": "longlive", "load_params": {"height": 480}}

    request = parse_load_request({"pipelines": [node], "load_params": {"height": 320}}, context())

    assert request.params["height"] == 480
    assert len(request.warnings) == 1


def test_unknown_pipeline_is_not_found_and_the_known_ones_are_named() -> None:
    error = refused({"pipeline_id": "nope"})

    assert error.status == 404
    assert error.detail.startswith("Unknown pipeline: nope")
    assert all(name in error.detail for name in SPECS)


def test_pipeline_that_cannot_be_served_is_refused_with_the_reason() -> None:
    error = refused({"pipeline_id": "longlive"}, available=False, reason="Run: wanstream-export longlive")

    assert (error.status, error.detail) == (400, "Run: wanstream-export longlive")


@pytest.mark.parametrize(
    ("body", "kind", "loc"),
    [
        ({"pipeline_id": 5}, "string_type", ["body", "pipeline_id"]),
        ({"pipeline_ids": "longlive"}, "list_type", ["body", "pipeline_ids"]),
        ({"pipeline_ids": [None]}, "string_type", ["body", "pipeline_ids", 0]),
        ({"pipelines": [{"pipeline_id": "longlive"}]}, "missing", ["body", "pipelines", 0, "node_id"]),
        ({"pipelines": [7]}, "model_type", ["body", "pipelines", 0]),
        ({"pipeline_id": "longlive", "load_params": [1]}, "dict_type", ["body", "load_params"]),
    ],
    ids=str,
)
def test_wrong_form_is_located(body: dict[str, Any], kind: str, loc: list[Any]) -> None:
    found = problems(body)

    assert [(p["type"], p["loc"]) for p in found] == [(kind, loc)]


# Load parameters


@pytest.mark.parametrize("given", [None, {}], ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.id)
def test_without_parameters_a_pipeline_gets_its_own_defaults(spec: PipelineSpec, given: Any) -> None:
    request = load(spec.id, given)

    assert (request.params["height"], request.params["width"]) == (spec.height, spec.width)
    assert (request.warnings, request.explicit_size) == ([], False)


def test_effective_parameters_are_in_the_order_of_scopes_status() -> None:
    assert list(load("longlive").params) == [
        *("loras", "lora_merge_mode", "height", "width", "seed", "base_seed"),
        *("quantization", "vace_enabled", "vae_type"),
    ]
    assert list(load("passthrough").params) == ["height", "width"]


def test_krea_has_vace_only_where_its_engine_is() -> None:
    asked = {"vace_enabled": True}
    for without in ({"vace": False}, {"vace_default": False}):
        refused_ = load("krea-realtime-video", asked, **without)
        assert "vace_enabled" not in refused_.params
        assert "vace_enabled" in refused_.warnings[0]

    assert load("krea-realtime-video", asked).params["vace_enabled"] is True


def test_vace_is_off_by_itself_where_its_engines_are_made_on_demand() -> None:
    assert load("longlive").params["vace_enabled"] is True
    assert load("longlive", vace_default=False).params["vace_enabled"] is False
    assert load("longlive", {"vace_enabled": True}, vace_default=False).params["vace_enabled"] is True


def test_engines_without_the_branch_are_loaded_without_vace() -> None:
    built = (Combination(64, 64, "wan", None, vace=False), Combination(96, 96, "wan", None, vace=True))
    around = {"combinations": built, "supported_resolutions": [(64, 64), (96, 96)]}

    def at(size: int, **params: Any) -> LoadRequest:
        return load("longlive", {"height": size, "width": size, **params}, **around)

    assert at(96).params["vace_enabled"] is True
    assert (at(64).params["vace_enabled"], at(64).warnings) == (False, [])
    asked = at(64, vace_enabled=True)
    assert asked.params["vace_enabled"] is False
    assert "no VACE engine for 64x64" in asked.warnings[0]
    assert "wanstream-export longlive --vace" in asked.warnings[0]


def test_how_vace_is_used_reaches_the_plan_of_the_load() -> None:
    request = load("longlive", {"vace_encoder_cache": "separate", "vace_pad_attention": False})

    assert request.warnings == []
    assert VacePlan.of(request.params) == VacePlan(encoder_cache="separate", pad_attention=False)
    assert VacePlan.of(load("longlive").params) == VacePlan()
    assert VacePlan.of(load("longlive", {"vace_enabled": False}).params) is None
    body = {"pipeline_id": "longlive", "load_params": {"vace_encoder_cache": "none"}}
    assert problems(body)[0]["type"] == "literal_error"


@pytest.mark.parametrize(
    ("given", "seed"),
    [({"seed": 7}, 7), ({"base_seed": 9}, 9), ({"seed": 7, "base_seed": 9}, 9), ({"seed": None}, 42)],
    ids=str,
)
def test_both_names_of_the_seed_work_and_report_one_value(given: dict[str, Any], seed: int) -> None:
    params = load("longlive", given).params

    assert (params["seed"], params["base_seed"]) == (seed, seed)


@pytest.mark.parametrize("name", ["lora_merge_mode", "lora_merge_strategy"])
def test_both_names_of_the_merge_mode_work(name: str) -> None:
    assert load("longlive", {name: "runtime_peft"}).params["lora_merge_mode"] == "runtime_peft"


@pytest.mark.parametrize(
    ("pipeline", "chosen"),
    [
        ("memflow", {"record_interval": 5}),
        ("memflow", {"record_interval": None}),
        ("reward-forcing", {"sink_ema_float32": True}),
    ],
)
def test_what_a_load_chooses_of_a_loop_is_in_force(pipeline: str, chosen: dict[str, Any]) -> None:
    request = load(pipeline, chosen)
    spec = with_choices(request.spec, request.params)

    (name,) = chosen
    assert request.params[name] == chosen[name]
    assert getattr(spec.loop, name) == chosen[name]
    assert request.warnings == []
    assert name not in load(pipeline).params  # the loop's own default
    assert load(pipeline, {name: getattr(SPECS[pipeline].loop, name)}).params == load(pipeline).params


def test_choices_are_checked_and_belong_to_their_pipelines() -> None:
    wrong = problems({"pipeline_id": "memflow", "load_params": {"record_interval": 0}})
    elsewhere = load("longlive", {"record_interval": 3, "sink_ema_float32": True})

    assert wrong[0]["loc"][-1] == "record_interval"
    assert len(elsewhere.warnings) == 2


def test_unknown_keys_are_ignored_with_a_warning_and_known_ui_keys_without() -> None:
    given = {"bogus": 1, "vace_ref_images": ["/x.png"], "vace_context_scale": 9, "ref_images": 3}

    request = load("longlive", given)

    assert len(request.warnings) == 1
    assert "bogus" in request.warnings[0]


def test_parameters_of_other_pipelines_are_ignored_with_a_warning() -> None:
    request = load("passthrough", {"height": 16, "width": 17, "seed": "not even a number"})

    assert request.params == {"height": 16, "width": 17}
    assert len(request.warnings) == 1
    assert "seed" in request.warnings[0]


@pytest.mark.parametrize("value", [320.0, "320", 320])
def test_integral_numbers_are_integers(value: Any) -> None:
    height = load("longlive", {"height": value}).params["height"]

    assert height == 320
    assert isinstance(height, int)


@pytest.mark.parametrize(
    ("key", "value", "kind", "ctx"),
    [
        ("height", 8, "greater_than_equal", {"ge": 16}),
        ("height", 4096, "less_than_equal", {"le": 2048}),
        ("width", 570, "multiple_of", {"multiple_of": 16}),
        ("height", 320.5, "int_type", None),
        ("height", "tall", "int_type", None),
        ("height", True, "int_type", None),
        ("height", [320], "int_type", None),
        ("height", 10**400, "less_than_equal", {"le": 2048}),
        ("seed", -1, "greater_than_equal", {"ge": 0}),
        ("base_seed", 2**63, "less_than_equal", {"le": 2**63 - 1}),
        ("vace_enabled", "maybe", "bool_type", None),
        ("quantization", "int8", "literal_error", {"expected": "'fp8_e4m3fn'"}),
        ("loras", "a.safetensors", "list_type", None),
        ("lora_merge_mode", "fast", "literal_error", {"expected": "'permanent_merge' or 'runtime_peft'"}),
    ],
)
def test_wrong_values_are_problems_with_scopes_codes(key: str, value: Any, kind: str, ctx: Any) -> None:
    found = problems({"pipeline_id": "longlive", "load_params": {key: value}})

    assert [(p["type"], p["loc"]) for p in found] == [(kind, ["body", "load_params", key])]
    assert found[0].get("ctx") == ctx


@pytest.mark.parametrize(
    ("lora", "kind", "where"),
    [
        ({"scale": 1}, "missing", "path"),
        ({"path": "a.safetensors", "scale": 11}, "less_than_equal", "scale"),
        ({"path": "a.safetensors", "scale": "big"}, "float_type", "scale"),
        ({"path": "a.safetensors", "scale": 10**400}, "float_type", "scale"),
        ({"path": "a.safetensors", "merge_mode": "x"}, "literal_error", "merge_mode"),
        ({"path": "a\u0000.safetensors"}, "string_control_character", "path"),
        ({"path": ""}, "string_too_short", "path"),
    ],
    ids=str,
)
def test_wrong_lora_entries_are_located(lora: dict[str, Any], kind: str, where: str) -> None:
    found = problems({"pipeline_id": "longlive", "load_params": {"loras": [lora]}})

    assert [(p["type"], p["loc"]) for p in found] == [(kind, ["body", "load_params", "loras", 0, where])]


def test_every_problem_is_reported_at_once() -> None:
    found = problems({"pipeline_id": "longlive", "load_params": {"height": 8, "seed": -1, "vae_type": "big"}})

    assert [p["loc"][-1] for p in found] == ["height", "seed", "vae_type"]


def test_problems_of_a_node_are_located_in_the_node() -> None:
    node = {"node_id": "n", "pipeline_id": "longlive", "load_params": {"height": 8}}

    assert problems({"pipelines": [node]})[0]["loc"] == ["body", "pipelines", 0, "load_params", "height"]


@pytest.mark.parametrize(("height", "nearest"), [(300, 304), (2047, 2048), (17, 16)])
def test_size_off_the_grid_is_refused_with_the_nearest_valid_one(height: int, nearest: int) -> None:
    found = problems({"pipeline_id": "longlive", "load_params": {"height": height}})

    assert found[0]["type"] == "multiple_of"
    assert found[0]["msg"].endswith(f"nearest valid height is {nearest}")


def test_size_without_engines_is_refused_and_the_built_ones_are_listed() -> None:
    error = refused(
        {"pipeline_id": "longlive", "load_params": {"height": 480}},
        supported_resolutions=[(320, 576), (480, 832)],
    )

    assert error.status == 400
    assert "320x576, 480x832" in error.detail


def test_without_a_size_the_first_built_one_is_used_and_the_warning_says_so() -> None:
    request = load("longlive", {}, supported_resolutions=[(128, 128)])

    assert (request.params["height"], request.params["width"]) == (128, 128)
    assert len(request.warnings) == 1
    assert "128x128" in request.warnings[0]


def test_autoencoder_without_engines_is_refused_and_the_built_ones_are_listed() -> None:
    error = refused(
        {"pipeline_id": "longlive", "load_params": {"vae_type": "tae"}}, vae_types=("wan", "lightvae")
    )

    assert error.status == 400
    assert "wan, lightvae" in error.detail


# Two sets of engines: neither has the size of the one with the autoencoder of the other.
TWO_SETS: dict[str, Any] = {
    "supported_resolutions": [(320, 576), (480, 832)],
    "vae_types": ("wan", "tae"),
    "quantizations": (),
    "combinations": (Combination(320, 576, "wan", None), Combination(480, 832, "tae", None)),
}


@pytest.mark.parametrize(
    ("params", "nearest"),
    [
        ({"height": 480, "width": 832, "vae_type": "wan"}, "480x832 (height x width) with vae_type tae."),
        ({"height": 320, "width": 576, "vae_type": "tae"}, "320x576 (height x width) with vae_type wan."),
    ],
)
def test_a_combination_without_engines_is_refused_and_the_nearest_is_named(
    params: dict[str, Any], nearest: str
) -> None:
    error = refused({"pipeline_id": "longlive", "load_params": params}, **TWO_SETS)

    assert error.status == 400
    assert error.detail.endswith(f"The nearest that it is built for: {nearest}")


@pytest.mark.parametrize(
    ("params", "chosen", "warning"),
    [
        ({}, (320, 576, "wan"), None),
        ({"height": 480, "width": 832}, (480, 832, "tae"), "No vae_type was given: using tae"),
        ({"vae_type": "tae"}, (480, 832, "tae"), "No size was given: using 480x832"),
    ],
)
def test_what_nobody_chose_follows_what_somebody_did(
    params: dict[str, Any], chosen: tuple[int, int, str], warning: str | None
) -> None:
    request = load("longlive", params, **TWO_SETS)

    assert tuple(request.params[name] for name in ("height", "width", "vae_type")) == chosen
    assert [w.partition(",")[0].partition(" (")[0] for w in request.warnings] == (
        [warning] if warning else []
    )


@pytest.mark.parametrize(
    ("vram_gib", "given", "expected"),
    [
        (80.0, {}, None),
        (40.5, {}, None),
        (40.0, {}, "fp8_e4m3fn"),
        (24.0, {}, "fp8_e4m3fn"),
        (24.0, {"quantization": None}, None),
        (80.0, {"quantization": "fp8_e4m3fn"}, "fp8_e4m3fn"),
        (None, {}, None),
    ],
)
def test_krea_is_quantized_where_memory_is_short(vram_gib: float | None, given: Any, expected: Any) -> None:
    assert load("krea-realtime-video", given, vram_gib=vram_gib).params["quantization"] == expected


def test_where_fp8_is_wanted_and_not_there_a_warning_names_the_command() -> None:
    command = "wanstream-export krea-realtime-video --precision fp8"

    unbuilt = load("krea-realtime-video", {}, vram_gib=24.0, quantizations=())
    chosen = load("krea-realtime-video", {"quantization": None}, vram_gib=24.0, quantizations=())

    assert unbuilt.params["quantization"] is None
    assert any(command in warning for warning in unbuilt.warnings)
    assert not any(command in warning for warning in chosen.warnings)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"loras": [{"path": "style.safetensors"}]}, "load without 'loras'"),
        (
            {"quantization": "fp8_e4m3fn"},
            "load with 'quantization' null. Make them: wanstream-export longlive --precision fp8",
        ),
    ],
)
def test_what_the_engines_cannot_do_is_refused_before_anything_is_unloaded(
    params: dict[str, Any], says: str
) -> None:
    body = {"pipeline_id": "longlive", "load_params": params}

    refusal = refused(body, loras=False, quantizations=())

    assert refusal.status == 400
    assert says in refusal.detail


def test_a_pipeline_without_quantized_engines_is_not_quantized_by_default() -> None:
    small = load("krea-realtime-video", vram_gib=24.0, quantizations=())

    assert small.params["quantization"] is None


def test_other_pipelines_are_never_quantized_unasked() -> None:
    assert load("longlive", {}, vram_gib=8.0).params["quantization"] is None


def test_too_little_memory_is_a_warning() -> None:
    assert load("longlive", {}, vram_gib=24.0).warnings == []
    assert "20 GB" in load("longlive", {}, vram_gib=8.0).warnings[0]


# LoRA files


def test_lora_entries_get_the_merge_mode_that_applies_to_them(loras: Path) -> None:
    entries = [
        {"path": "style.safetensors", "scale": 0.5},
        {"path": str(loras / "sub/two.SAFETENSORS"), "merge_mode": "permanent_merge"},
    ]

    params = load("longlive", {"loras": entries, "lora_merge_mode": "runtime_peft"}, tmp_path=loras).params

    assert params["loras"] == [
        {"path": "style.safetensors", "scale": 0.5, "merge_mode": "runtime_peft"},
        {"path": str(loras / "sub/two.SAFETENSORS"), "scale": 1.0, "merge_mode": "permanent_merge"},
    ]


def test_an_empty_list_of_loras_is_the_same_as_none() -> None:
    assert load("longlive", {"loras": []}).params == load("longlive").params


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("nothere.safetensors", "file_not_found"),
        ("sub/../nothere.safetensors", "file_not_found"),
        (f"{'a' * 300}.safetensors", "file_not_found"),
        ("sub.safetensors/", "file_not_found"),
        ("notes.txt", "path_not_allowed"),
        (".", "path_not_allowed"),
        ("../secret.safetensors", "path_not_allowed"),
        ("link.safetensors", "path_not_allowed"),
        ("loop.safetensors", "path_not_allowed"),
        ("/etc/passwd", "path_not_allowed"),
    ],
)
def test_lora_paths_that_cannot_be_used_are_refused_with_their_class(
    loras: Path, path: str, kind: str
) -> None:
    error = refused({"pipeline_id": "longlive", "load_params": {"loras": [{"path": path}]}}, tmp_path=loras)

    assert error.status == 400
    assert kind in error.detail
    assert path[:100] in error.detail


@pytest.mark.parametrize("second", ["style.safetensors", "./style.safetensors", "sub/../style.safetensors"])
def test_the_same_lora_file_twice_is_refused(loras: Path, second: str) -> None:
    entries = [{"path": "style.safetensors"}, {"path": second}]

    error = refused({"pipeline_id": "longlive", "load_params": {"loras": entries}}, tmp_path=loras)

    assert error.status == 400
    assert "duplicate" in error.detail


def test_further_lora_directories_are_searched_in_order(loras: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "third.safetensors").write_bytes(b"x")
    around = LoadContext(lambda spec, backend: Availability(available=True), [loras, other])
    body = {"pipeline_id": "longlive", "load_params": {"loras": [{"path": "third.safetensors"}]}}

    assert parse_load_request(body, around).params["loras"][0]["path"] == "third.safetensors"


def test_adapters_of_the_status_are_listed_in_the_order_in_which_they_apply(loras: Path) -> None:
    (loras / "my style-v1.2.safetensors").write_bytes(b"x")
    entries = [
        {"path": "my style-v1.2.safetensors", "scale": 0.8, "merge_mode": "runtime_peft"},
        {"path": "style.safetensors"},
    ]
    request = load("longlive", {"loras": entries}, tmp_path=loras)

    assert lora_adapters(request.spec, request.params) == [
        {"path": "style.safetensors", "scale": 1.0, "merge_mode": "permanent_merge"},
        {
            "path": "my style-v1.2.safetensors",
            "scale": 0.8,
            "merge_mode": "runtime_peft",
            "adapter_name": "my_style_v1_2",
        },
    ]


def test_without_loras_a_pipeline_lists_none_and_passthrough_says_nothing() -> None:
    assert lora_adapters(SPECS["longlive"], load("longlive").params) == []
    assert lora_adapters(SPECS["passthrough"], load("passthrough").params) is None


# Anything


def answer(pipeline_request: Callable[[], LoadRequest]) -> tuple[int, object]:
    """What a client would be sent; only the declared errors count as answers."""
    try:
        return 200, pipeline_request().params
    except ApiError as error:
        return error.status, error.detail
    except ValidationFailed as error:
        return 422, error.problems


@settings(max_examples=300, deadline=None)
@given(body=st.dictionaries(BODY_KEYS, JSON))
def test_any_body_is_accepted_or_refused_with_valid_json(body: dict[str, Any]) -> None:
    status, content = answer(lambda: parse_load_request(body, context()))

    assert status in (200, 400, 404, 422)
    assert json.dumps(content, allow_nan=False)


@settings(max_examples=300, deadline=None)
@given(pipeline=st.sampled_from(list(SPECS)), params=st.dictionaries(KEYS, JSON))
def test_any_load_params_are_accepted_or_refused_with_valid_json(
    pipeline: str, params: dict[str, Any]
) -> None:
    status, content = answer(lambda: load(pipeline, params))

    assert status in (200, 400, 422)
    assert json.dumps(content, allow_nan=False)
