"""The answer of GET /api/v1/pipelines/schemas: all pipelines as Scope's clients know them (api.md 4.7)."""

from collections.abc import Callable
from typing import Any, Final, get_args

from gateway.pipelines.load_params import MAX_INTERVAL, default_size
from gateway.serving.interface import Availability, offers_vace
from streaming.specs import (
    SPECS,
    VIDEO,
    LoopSpec,
    LoraMergeMode,
    ModeDefaults,
    PipelineSpec,
    Quantization,
    VaeType,
)

_VERSION: Final = "1.0.0"  # of the schema, the same for all


def pipeline_schemas(availability: Callable[[PipelineSpec], Availability]) -> dict[str, Any]:
    """Body of the answer. The order of the pipelines is the order of a client's drop-down."""
    return {"pipelines": {spec.id: pipeline_schema(spec, availability(spec)) for spec in SPECS.values()}}


def pipeline_schema(spec: PipelineSpec, availability: Availability) -> dict[str, Any]:
    """One pipeline; where its usual size is not built, the default size is the first one that is."""
    sizes = availability.supported_resolutions
    entry = {
        **_identity(spec),
        "supports_vace": offers_vace(spec, availability),
        "vace_default": offers_vace(spec, availability) and availability.vace_default,
        "requires_models": spec.requires_models and availability.needs_models,
        "available": availability.available,
        "unavailable_reason": availability.reason,
        "note": availability.note or None,
        "example_prompts": list(availability.examples),
        "supported_resolutions": None if sizes is None else [list(size) for size in sizes],
        "input_size": {mode: spec.input_frames_per_chunk if mode == VIDEO else 0 for mode in spec.modes},
        "config_schema": _config_schema(spec, *default_size(spec, availability)),
    }
    modes = _mode_defaults(spec, sizes)
    return {**entry, "mode_defaults": modes} if modes else entry


def _identity(spec: PipelineSpec) -> dict[str, Any]:
    vace_inputs = ["vace_input_frames", "vace_input_masks"] if spec.loop is not None else []
    return {
        "id": spec.id,
        "name": spec.name,
        "description": spec.description,
        "version": _VERSION,
        "supported_modes": list(spec.modes),
        "default_mode": spec.default_mode,
        "supports_prompts": spec.supports_prompts,
        "default_temporal_interpolation_method": spec.transition_method,
        "default_temporal_interpolation_steps": spec.transition_steps,
        "default_spatial_interpolation_method": "linear",
        "docs_url": spec.docs_url,
        "estimated_vram_gb": spec.estimated_vram_gb,
        "requires_models": spec.requires_models,
        "supports_lora": spec.supports_lora,
        "supports_vace": spec.supports_vace,
        "supports_cache_management": spec.supports_cache_management,
        "supports_kv_cache_bias": spec.supports_kv_cache_bias,
        "supports_quantization": spec.supports_quantization,
        "min_dimension": spec.size.step,
        "recommended_quantization_vram_threshold": spec.quantization_vram_threshold_gib,
        "modified": spec.loop is not None,
        "produces_video": True,
        "produces_audio": False,
        "usage": [],
        "inputs": ["video", *vace_inputs],
        "outputs": ["video"],
        "plugin_name": None,
    }


def _mode_defaults(spec: PipelineSpec, sizes: list[tuple[int, int]] | None) -> dict[str, dict[str, Any]]:
    return {
        mode: {key: value for key, value in _mode_values(defaults, sizes).items() if value is not None}
        for mode, defaults in spec.mode_defaults.items()
    }


def _mode_values(defaults: ModeDefaults, sizes: list[tuple[int, int]] | None) -> dict[str, Any]:
    size = (defaults.height, defaults.width)
    built = sizes is None or size in sizes
    return {
        "height": defaults.height if built else None,
        "width": defaults.width if built else None,
        "denoising_steps": list(defaults.denoising_steps) if defaults.denoising_steps else None,
        "noise_scale": defaults.noise_scale,
        "noise_controller": defaults.noise_controller,
        "default_temporal_interpolation_steps": defaults.transition_steps,
    }


def _config_schema(spec: PipelineSpec, height: int, width: int) -> dict[str, Any]:
    properties = {
        "height": _size(spec, "Height", height),
        "width": _size(spec, "Width", width),
        "manage_cache": _property(
            "Manage Cache", "Start the caches afresh when a change needs it.", type="boolean", default=True
        ),
        "base_seed": _property(
            "Base Seed",
            "Seed of the noise: the same seed gives the same stream.",
            type="integer",
            minimum=0,
            default=spec.base_seed,
        ),
        "denoising_steps": _steps(spec),
        "noise_scale": _optional(
            "Noise Scale",
            "How far a picture may move away from the input video: 0 is close, 1 is free.",
            spec.noise_scale,
            type="number",
            minimum=0.0,
            maximum=1.0,
        ),
        "noise_controller": _optional(
            "Noise Controller",
            "Adapt the noise to the motion of the input video.",
            spec.noise_controller,
            type="boolean",
        ),
        "input_size": _input_size(spec),
        "ref_images": _optional(
            "Ref Images",
            "Reference images that steer one chunk.",
            None,
            type="array",
            items={"type": "string"},
        ),
        "vace_context_scale": _property(
            "Vace Context Scale",
            "Strength of reference images and control video.",
            type="number",
            minimum=0.0,
            maximum=2.0,
            default=1.0,
        ),
        **_model_properties(spec),
    }
    for name, hint in (_ui_hints(spec) if spec.loop is not None else {}).items():
        properties[name]["ui"] = {"category": "configuration", **hint}
    return {
        "$defs": {
            "Quantization": _enum("Quantization", get_args(Quantization)),
            "VaeType": _enum("VaeType", get_args(VaeType)),
        },
        "additionalProperties": False,
        "properties": properties,
        "title": spec.config_title,
        "type": "object",
    }


def _model_properties(spec: PipelineSpec) -> dict[str, dict[str, Any]]:
    """Properties of pipelines that have a model; passthrough keeps the base form of the first one."""
    modes = list(get_args(LoraMergeMode))
    about = "Merge LoRA files into the weights (fastest), or keep their scale adjustable while streaming."
    if spec.loop is None:
        form = _optional("Lora Merge Strategy", about, None, type="string", enum=modes)
        return {"lora_merge_strategy": form}
    return {
        "lora_merge_strategy": _property(
            "Lora Merge Strategy", about, type="string", enum=modes, default="permanent_merge"
        ),
        "vae_type": {
            "$ref": "#/$defs/VaeType",
            "title": "Vae Type",
            "description": "Autoencoder; the light ones are faster and less exact.",
            "default": "wan",
        },
        "quantization": {
            "anyOf": [{"$ref": "#/$defs/Quantization"}, {"type": "null"}],
            "title": "Quantization",
            "description": "Run the model's linear layers in 8 bit to save memory.",
            "default": None,
        },
        **_loop_choices(spec.loop),
    }


def _loop_choices(loop: LoopSpec) -> dict[str, dict[str, Any]]:
    """What a load may choose of a loop that has it; not in Scope."""
    choices = {}
    if loop.bank_size:
        choices["record_interval"] = {
            "title": "Record Interval",
            "description": "Chunks between two frames of the memory bank; null: it stays empty, as in Scope.",
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_INTERVAL}, {"type": "null"}],
            "default": loop.record_interval,
        }
    if loop.averaged_frames:
        choices["sink_ema_float32"] = _property(
            "Sink Ema Float32",
            "Average the first frames in 32 bit: as published, not as in Scope.",
            type="boolean",
            default=loop.sink_ema_float32,
        )
    return choices


def _size(spec: PipelineSpec, title: str, default: int) -> dict[str, Any]:
    limits: dict[str, Any] = {"minimum": spec.size.minimum}
    if spec.loop is not None:
        limits |= {"maximum": spec.size.maximum, "multipleOf": spec.size.step}
    return _property(title, f"{title} of the video in pixels.", type="integer", **limits, default=default)


def _steps(spec: PipelineSpec) -> dict[str, Any]:
    about = "Timesteps at which a picture is denoised, descending; fewer are faster."
    form = {"type": "array", "items": {"type": "integer"}}
    if spec.denoising_steps is None:
        return _optional("Denoising Steps", about, None, **form)
    return _property("Denoising Steps", about, **form, default=list(spec.denoising_steps))


def _input_size(spec: PipelineSpec) -> dict[str, Any]:
    about = "Input frames that one chunk takes."
    if spec.default_mode == VIDEO and spec.loop is not None:
        return _property("Input Size", about, type="integer", minimum=1, default=spec.input_frames_per_chunk)
    return {**_optional("Input Size", about, None, type="integer", minimum=1), "default": 1}


def _ui_hints(spec: PipelineSpec) -> dict[str, dict[str, Any]]:
    noise: dict[str, Any] = {"order": 7, "component": "noise", "modes": [VIDEO], "is_load_param": False}
    live = (
        {"modulatable": True, "modulatable_min": 0.0, "modulatable_max": 1.0} if spec.noise_scale_live else {}
    )
    choices = _loop_choices(spec.loop) if spec.loop is not None else {}
    return {
        **{name: {"order": 9, "is_load_param": True} for name in choices},
        "vace_context_scale": {"order": 1, "component": "vace", "is_load_param": True},
        "lora_merge_strategy": {"order": 2, "component": "lora", "is_load_param": True},
        "vae_type": {"order": 3, "is_load_param": True, "label": "VAE"},
        "height": {"order": 4, "component": "resolution", "is_load_param": True},
        "width": {"order": 4, "component": "resolution", "is_load_param": True},
        "base_seed": {"order": 5, "is_load_param": True, "label": "Seed"},
        "manage_cache": {"order": 5, "component": "cache", "is_load_param": True},
        "denoising_steps": {
            "order": 6,
            "component": "denoising_steps",
            "is_load_param": True,
            "modulatable": True,
            "modulatable_min": 100,
            "modulatable_max": 1000,
        },
        "noise_scale": {**noise, **live},
        "noise_controller": noise,
        "quantization": {"order": 8, "component": "quantization", "is_load_param": True},
    }


def _property(title: str, description: str, **form: Any) -> dict[str, Any]:
    return {"title": title, "description": description, **form}


def _optional(title: str, description: str, default: Any, **form: Any) -> dict[str, Any]:
    """A property that may be null, unless the pipeline gives it a default."""
    if default is not None:
        return _property(title, description, **form, default=default)
    return {"title": title, "description": description, "anyOf": [form, {"type": "null"}], "default": None}


def _enum(title: str, values: tuple[str, ...]) -> dict[str, Any]:
    return {"title": title, "type": "string", "enum": list(values)}
