import json
from typing import Any

import pytest

from gateway.pipelines.load_params import LoadContext, parse_load_request
from gateway.pipelines.schemas import pipeline_schema, pipeline_schemas
from gateway.serving.interface import Availability
from streaming.specs import KREA_REALTIME_VIDEO, LONGLIVE, MEMFLOW, PASSTHROUGH, SPECS, PipelineSpec

MODELS = [spec for spec in SPECS.values() if spec.loop is not None]
CHOICES = {"memflow": ["record_interval"], "reward-forcing": ["sink_ema_float32"]}
ENTRY_KEYS = {
    *("id", "name", "description", "version", "supported_modes", "default_mode", "supports_prompts"),
    *("default_temporal_interpolation_method", "default_temporal_interpolation_steps", "docs_url"),
    *("estimated_vram_gb", "requires_models", "supports_lora", "supports_vace", "min_dimension", "modified"),
    *("supports_cache_management", "supports_kv_cache_bias", "supports_quantization", "config_schema"),
    *("recommended_quantization_vram_threshold", "default_spatial_interpolation_method", "produces_video"),
    *("produces_audio", "usage", "inputs", "outputs", "plugin_name", "available", "unavailable_reason"),
    *("supported_resolutions", "input_size", "note", "example_prompts", "vace_default"),
}


def everything(spec: PipelineSpec, backend: str = "auto") -> Availability:
    return Availability(available=True)


def properties(spec: PipelineSpec, availability: Availability | None = None) -> dict[str, Any]:
    schema = pipeline_schema(spec, availability or Availability(available=True))
    found: dict[str, Any] = schema["config_schema"]["properties"]
    return found


def test_every_pipeline_is_listed_with_the_keys_of_both_generations() -> None:
    answer = pipeline_schemas(everything)["pipelines"]

    assert list(answer) == list(SPECS)
    for entry in answer.values():
        assert entry.keys() - {"mode_defaults"} == ENTRY_KEYS


def test_answer_is_json_and_the_same_every_time() -> None:
    first, second = pipeline_schemas(everything), pipeline_schemas(everything)
    first["pipelines"]["longlive"]["supported_modes"].append("changed by a caller")

    assert json.loads(json.dumps(second)) == second == pipeline_schemas(everything)


def test_unavailable_pipeline_is_listed_with_its_reason() -> None:
    entry = pipeline_schema(LONGLIVE, Availability(False, "Run: wanstream-export longlive"))

    assert (entry["available"], entry["unavailable_reason"]) == (False, "Run: wanstream-export longlive")


def test_mode_defaults_are_absent_where_no_mode_differs() -> None:
    assert "mode_defaults" not in pipeline_schema(PASSTHROUGH, everything(PASSTHROUGH))
    assert pipeline_schema(LONGLIVE, everything(LONGLIVE))["mode_defaults"] == {
        "video": {
            "height": 512,
            "width": 512,
            "denoising_steps": [1000, 750],
            "noise_scale": 0.7,
            "noise_controller": True,
        }
    }


@pytest.mark.parametrize(
    ("spec", "vace", "made", "told"),
    [
        (LONGLIVE, True, True, (True, True)),
        (LONGLIVE, True, False, (True, False)),  # made when a load asks for it
        (LONGLIVE, False, True, (False, False)),
        (KREA_REALTIME_VIDEO, True, True, (True, True)),
        (KREA_REALTIME_VIDEO, True, False, (False, False)),
        (KREA_REALTIME_VIDEO, False, True, (False, False)),
        (PASSTHROUGH, True, True, (False, False)),
    ],
)
def test_vace_is_told_of_where_a_load_may_have_it(
    spec: PipelineSpec, vace: bool, made: bool, told: tuple[bool, bool]
) -> None:
    entry = pipeline_schema(spec, Availability(True, vace=vace, vace_default=made))

    assert (entry["supports_vace"], entry["vace_default"]) == told


def test_krea_proposes_no_transition_in_video_mode() -> None:
    entry = pipeline_schema(KREA_REALTIME_VIDEO, everything(KREA_REALTIME_VIDEO))

    assert entry["default_temporal_interpolation_steps"] == 4
    assert entry["mode_defaults"]["video"]["default_temporal_interpolation_steps"] == 0


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.id)
def test_size_limits_of_the_schema_are_those_of_a_load(spec: PipelineSpec) -> None:
    context = LoadContext(everything, [])
    height = properties(spec)["height"]
    limits = [height["minimum"], height["minimum"] + height["multipleOf"], height["maximum"]]

    bodies = [{"pipeline_id": spec.id, "load_params": {"height": value}} for value in limits]
    accepted = [parse_load_request(body, context).params["height"] for body in bodies]

    assert accepted == limits


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.id)
def test_defaults_of_the_schema_are_those_of_a_load_without_parameters(spec: PipelineSpec) -> None:
    schema = properties(spec)

    params = parse_load_request({"pipeline_id": spec.id}, LoadContext(everything, [])).params

    renamed = {"lora_merge_mode": "lora_merge_strategy"}
    for key, value in params.items():
        name = renamed.get(key, key)
        if name in schema:
            assert schema[name]["default"] == value, key


def test_where_the_usual_size_is_not_built_the_first_built_one_is_the_default() -> None:
    built = Availability(True, supported_resolutions=[(128, 160), (96, 96)])

    entry = pipeline_schema(LONGLIVE, built)

    size = entry["config_schema"]["properties"]
    assert (size["height"]["default"], size["width"]["default"]) == (128, 160)
    assert entry["supported_resolutions"] == [[128, 160], [96, 96]]
    assert "height" not in entry["mode_defaults"]["video"]


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.id)
def test_hints_for_the_page(spec: PipelineSpec) -> None:
    schema = properties(spec)

    orders = {name: form["ui"]["order"] for name, form in schema.items() if "ui" in form}

    assert orders == {
        **{"vace_context_scale": 1, "lora_merge_strategy": 2, "vae_type": 3, "height": 4, "width": 4},
        **{"base_seed": 5, "manage_cache": 5, "denoising_steps": 6, "noise_scale": 7},
        **{"noise_controller": 7, "quantization": 8},
        **dict.fromkeys(CHOICES.get(spec.id, ()), 9),
    }
    assert schema["noise_scale"]["ui"].get("modulatable", False) is (spec.id == "longlive")


@pytest.mark.parametrize("value", [1, 1000, None])
def test_an_interval_that_the_schema_allows_can_be_loaded(value: int | None) -> None:
    number, null = properties(MEMFLOW)["record_interval"]["anyOf"]
    body = {"pipeline_id": "memflow", "load_params": {"record_interval": value}}

    assert parse_load_request(body, LoadContext(everything, [])).params["record_interval"] == value
    assert (number["minimum"], number["maximum"], null) == (1, 1000, {"type": "null"})
    assert "record_interval" not in properties(LONGLIVE)


def test_passthrough_has_no_hints_and_optional_model_parameters() -> None:
    schema = properties(PASSTHROUGH)

    assert not [name for name, form in schema.items() if "ui" in form]
    assert schema["noise_scale"]["anyOf"][1] == {"type": "null"}
    assert schema["denoising_steps"]["default"] is None


def test_references_point_to_definitions_with_all_values() -> None:
    schema = pipeline_schema(LONGLIVE, everything(LONGLIVE))["config_schema"]

    assert schema["properties"]["vae_type"]["$ref"] == "#/$defs/VaeType"
    assert schema["$defs"]["VaeType"]["enum"] == ["wan", "lightvae", "tae", "lighttae"]


def test_input_frames_per_mode() -> None:
    sizes = {spec.id: pipeline_schema(spec, everything(spec))["input_size"] for spec in SPECS.values()}

    assert sizes["longlive"] == {"text": 0, "video": 12}
    assert sizes["streamdiffusionv2"] == {"text": 0, "video": 4}
    assert sizes["passthrough"] == {"video": 4}


def test_what_weights_understand_is_told() -> None:
    plain = pipeline_schema(LONGLIVE, Availability(True))
    tiny = pipeline_schema(LONGLIVE, Availability(True, note="Knows one word.", examples=("a ball",)))

    assert (plain["note"], plain["example_prompts"]) == (None, [])
    assert (tiny["note"], tiny["example_prompts"]) == ("Knows one word.", ["a ball"])
