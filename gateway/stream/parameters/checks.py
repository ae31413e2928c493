"""Live parameters: one validator for `initialParameters` and for data-channel messages (api.md 9.3).

What becomes of valid values over time is in `state`.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from gateway.errors import ApiError, Problem, ValidationFailed
from gateway.files.media import IMAGE_SUFFIXES, MAX_PIXELS, image_pixels
from gateway.http.paths import PathNotAllowedError, is_file, resolve_inside
from gateway.http.strict_json import JsonError, parse_json
from gateway.http.validation import FilePath, Integer, Number, Seed, Text, check, echo, quoted
from gateway.stream.parameters.prompt_hints import PLAIN_WORDS, hint_at
from gateway.stream.parameters.tempo import MAX_LOOKAHEAD_MS, QuantizeMode
from streaming.specs import Interpolation, PipelineSpec, Preprocessor

MAX_PROMPTS: Final = 16
MAX_TRANSITION_CHUNKS: Final = 1000  # every step holds a prompt embedding in memory
MAX_STEPS: Final = 10
VACE_IMAGE_KEYS: Final = frozenset({"vace_ref_images", "first_frame_image", "last_frame_image"})
IMAGE_KEYS: Final = VACE_IMAGE_KEYS | {"images"}

# What a stream is attached to: done at once, and no part of a chunk's parameters.
WISHES: Final = frozenset({"spout_sender", "spout_receiver", "output_sinks", "input_source"})
# How changes wait for the beat: in force at once, and no part of a chunk's parameters either.
TIMING: Final = frozenset({"quantize_mode", "lookahead_ms"})

_MAX_ENTRIES: Final = 64
_MAX_VACE_SCALE: Final = 2.0
_ALIASES: Final = {"spatial_interpolation_method": "prompt_interpolation_method", "seed": "base_seed"}
_FIXED_AT_LOAD: Final = frozenset({"height", "width"})


class _Prompt(BaseModel):
    text: Text
    weight: Annotated[Number, Field(ge=0)] = 1.0


def _prompt_objects(value: Any) -> Any:
    """A text stands for one prompt of weight 1, alone or as an element of a list."""
    if isinstance(value, str):
        return [{"text": value}]
    if isinstance(value, list):
        return [{"text": item} if isinstance(item, str) else item for item in value]
    return value


_Prompts = Annotated[
    list[_Prompt], Field(min_length=1, max_length=MAX_PROMPTS), BeforeValidator(_prompt_objects)
]


class _Transition(BaseModel):
    target_prompts: _Prompts
    num_steps: Annotated[Integer, Field(ge=0, le=MAX_TRANSITION_CHUNKS)] = 4
    temporal_interpolation_method: Interpolation = "linear"


class _LoraScale(BaseModel):
    path: FilePath
    scale: Annotated[Number, Field(ge=-10, le=10)] | None


_Name = Annotated[Text, Field(max_length=256)]


class _LocalSink(BaseModel):
    enabled: bool = False
    name: _Name | None = None  # None: the usual one


class _LocalSinks(BaseModel):
    spout: _LocalSink | None = None
    ndi: _LocalSink | None = None
    syphon: _LocalSink | None = None


class _SpoutReceiver(BaseModel):
    enabled: bool = False
    name: _Name = ""


class _InputSource(BaseModel):
    enabled: bool = True
    source_type: Literal["spout", "ndi", "syphon"]
    source_name: _Name | None = None  # None: any


def _descending(steps: list[int]) -> list[int]:
    if any(later >= earlier for earlier, later in pairwise(steps)):
        raise PydanticCustomError(
            "not_descending",
            "Steps must become smaller from one to the next, for example [1000, 750, 500, 250]",
        )
    return steps


_Steps = Annotated[
    list[Annotated[Integer, Field(ge=1, le=1000)]],
    Field(min_length=1, max_length=MAX_STEPS),
    AfterValidator(_descending),
]
_Paths = Annotated[list[FilePath], Field(max_length=MAX_PROMPTS)]


@dataclass(frozen=True, slots=True)
class ParameterContext:
    """What decides whether a value makes sense here: the loaded pipeline and where images may come from."""

    spec: PipelineSpec
    load_params: Mapping[str, Any]
    assets_directory: Path

    @property
    def vace_loaded(self) -> bool:
        return self.spec.supports_vace and bool(self.load_params.get("vace_enabled"))


@dataclass(frozen=True, slots=True)
class LiveParameter:
    """All that is declared about a parameter that holds until it is changed, and that chunks are told.

    kind      type and range
    default   what is in force until a client says something
    told      whether the loaded pipeline makes use of it
    """

    kind: Any
    default: Callable[[ParameterContext], Any]
    told: Callable[[ParameterContext], bool]


def _has_prompts(context: ParameterContext) -> bool:
    return context.spec.supports_prompts


def _has_loop(context: ParameterContext) -> bool:
    return context.spec.loop is not None


def _has_past_weight(context: ParameterContext) -> bool:
    return context.spec.supports_kv_cache_bias


def _has_vace(context: ParameterContext) -> bool:
    return context.vace_loaded


def _empty_prompt(context: ParameterContext) -> Any:
    return [{"text": "", "weight": 1.0}] if context.spec.supports_prompts else None


def _steps(context: ParameterContext) -> Any:
    return list(context.spec.denoising_steps) if context.spec.denoising_steps else None


# All that a message may say. The descriptions are for people who look for a control in the list of OSC
# addresses.
_KINDS: Final[dict[str, Any]] = {
    "input_mode": Annotated[
        Literal["text", "video"], Field(description="Generate from the prompt alone, or from the input video")
    ],
    "prompts": LiveParameter(
        Annotated[_Prompts, Field(description="What to show; several prompts are blended")],
        _empty_prompt,
        _has_prompts,
    ),
    "prompt_interpolation_method": LiveParameter(
        Annotated[
            Interpolation, Field(description="How several prompts are blended; slerp needs exactly two")
        ],
        lambda _: "linear",
        _has_prompts,
    ),
    "transition": LiveParameter(
        Annotated[_Transition, Field(description="Move to other prompts over some chunks")],
        lambda _: None,
        _has_prompts,
    ),
    "denoising_step_list": LiveParameter(
        Annotated[_Steps, Field(description="Timesteps of the denoising, each smaller than the one before")],
        _steps,
        _has_loop,
    ),
    "noise_scale": LiveParameter(
        Annotated[
            Number, Field(ge=0, le=1, description="How far the result may move away from the input video")
        ],
        lambda context: context.spec.noise_scale,
        _has_loop,
    ),
    "noise_controller": LiveParameter(
        Annotated[bool, Field(description="Adapt the noise to the motion of the input video")],
        lambda context: context.spec.noise_controller,
        _has_loop,
    ),
    "manage_cache": LiveParameter(
        Annotated[bool, Field(description="Start with fresh caches when a change needs it")],
        lambda _: True,
        _has_loop,
    ),
    "reset_cache": Annotated[bool, Field(description="Start the next chunk with fresh caches")],
    "kv_cache_attention_bias": LiveParameter(
        Annotated[Number, Field(ge=0.01, le=1, description="Weight of past frames in attention; 1 is off")],
        lambda context: context.spec.kv_cache_attention_bias,
        _has_past_weight,
    ),
    "base_seed": LiveParameter(
        Annotated[Seed, Field(description="Seed of the noise, from the next fresh start of the caches")],
        lambda context: context.load_params.get("base_seed", context.spec.base_seed),
        _has_loop,
    ),
    "lora_scales": Annotated[
        list[Any], Field(max_length=_MAX_ENTRIES, description="New scales of loaded LoRA adapters")
    ],
    "vace_ref_images": Annotated[_Paths, Field(description="Reference images of the next chunk")],
    "first_frame_image": Annotated[FilePath, Field(description="Image that the next chunk begins with")],
    "last_frame_image": Annotated[FilePath, Field(description="Image that the next chunk ends with")],
    "images": _Paths,
    "vace_context_scale": LiveParameter(
        Annotated[
            Number,
            Field(ge=0, le=_MAX_VACE_SCALE, description="Strength of reference images and control video"),
        ],
        lambda _: 1.0,
        _has_vace,
    ),
    "vace_enabled": LiveParameter(
        Annotated[bool, Field(description="Let VACE guide the pictures")], _has_vace, _has_vace
    ),
    "vace_use_input_video": LiveParameter(
        Annotated[bool, Field(description="Whether VACE takes the input video")], lambda _: True, _has_vace
    ),
    "vace_preprocessor": LiveParameter(
        Annotated[
            Preprocessor,
            Field(description="What VACE is shown in place of the input video"),
        ],
        lambda _: "none",
        _has_vace,
    ),
    "paused": Annotated[bool, Field(description="Stand still: no new chunks, the last picture is repeated")],
    "recording": Annotated[bool, Field(description="Record the stream on the server; false ends the take")],
    "spout_sender": _LocalSink,
    "spout_receiver": _SpoutReceiver,
    "output_sinks": _LocalSinks,
    "input_source": _InputSource,
    "pipeline_ids": list[str],
    "quantize_mode": Annotated[QuantizeMode, Field(description="Which beat changes of parameters wait for")],
    "lookahead_ms": Annotated[
        Number, Field(ge=0, le=MAX_LOOKAHEAD_MS, description="How long before that beat they begin")
    ],
    "take_control": bool,
    "hand_over": Annotated[Text, Field(max_length=64)],
}
LIVE: Final = {name: kind for name, kind in _KINDS.items() if isinstance(kind, LiveParameter)}
FIELDS: Final[dict[str, TypeAdapter[Any]]] = {
    name: TypeAdapter(kind.kind if isinstance(kind, LiveParameter) else kind) for name, kind in _KINDS.items()
}
_LORA_SCALE: Final = TypeAdapter(_LoraScale)
_ANY_NUMBER: Final = TypeAdapter(Number)


@dataclass(frozen=True, slots=True)
class Validated:
    """values: what holds, names without aliases; None stands for the default. problems: values that were
    dropped. remarks: values of the right form that were adjusted, or that have no effect here.
    """

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)


def name_of(key: str) -> str:
    """The name of the parameter that somebody calls so."""
    return _ALIASES.get(key, key)


def parse_message(data: str | bytes | None) -> dict[str, Any]:
    """The JSON object in a data-channel message; None stands for one that is too large. Raises JsonError."""
    if data is None:
        raise JsonError("larger than 1 MiB")
    value = parse_json(data)
    if not isinstance(value, dict):
        raise JsonError(f"one object with parameters is needed, not {type(value).__name__}")
    return value


def validate(values: Mapping[str, Any], context: ParameterContext, *, strict: bool) -> Validated:
    """Check parameters by name; never raises, whatever JSON holds. Unknown names are left out.

    strict: for an offer, where a wrong value refuses the whole; otherwise an out-of-range
    `vace_context_scale` is clamped. Problems are located relative to `values`.
    """
    result = Validated()
    assets = _Assets(context.assets_directory)
    for key, value in values.items():
        name = name_of(key)
        if name != key and name in values:
            continue
        if key in _FIXED_AT_LOAD:
            text = "The size is fixed while a pipeline is loaded; load it again with another size"
            result.problems.append(_problem("frozen_field", key, text, value))
        elif name not in FIELDS:
            continue
        elif value is None:
            result.values[name] = None
        else:
            try:
                if name == "vace_context_scale" and not strict:
                    result.values[name] = _clamped(key, value, result)
                else:
                    _accept(name, key, value, context, assets, result)
            except ValidationFailed as error:
                result.problems.extend(error.problems)
    return result


def newest_values(messages: Iterable[str | bytes | None]) -> dict[str, Any]:
    """Many messages as one update: of each parameter the newest value; what is no JSON object is left out.

    One-shot keys accumulate, as they would if the messages were applied one by one.
    """
    newest: dict[str, Any] = {}
    for message in messages:
        try:
            fold(newest, parse_message(message))
        except JsonError:
            continue
    return newest


def fold(newest: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Put a later update into an earlier one: applied, they do as one what both would do in turn."""
    if "prompts" in update and "transition" not in update:
        newest.pop("transition", None)
    for key, value in update.items():
        name = name_of(key)
        if name not in FIELDS and name not in _FIXED_AT_LOAD:
            continue
        if name == "reset_cache":
            value = value or newest.get(name)
        if name == "lora_scales":
            value = _both(newest.get(name), value)
        newest[name] = value


def _both(earlier: Any, later: Any) -> Any:
    """Scales of two messages; those that could not be valid any more are left to the check."""
    if not isinstance(earlier, list) or not isinstance(later, list):
        return later
    renewed = [entry.get("path") for entry in later if isinstance(entry, dict)]
    kept = [entry for entry in earlier if isinstance(entry, dict) and entry.get("path") not in renewed]
    return [*kept, *later][-_MAX_ENTRIES:]


def require_pipeline(values: Mapping[str, Any], spec: PipelineSpec) -> None:
    """Refuse an offer that was made for another pipeline than the loaded one. Raises ApiError 400."""
    ids = values.get("pipeline_ids")
    if ids and set(ids) != {spec.id}:
        named = ", ".join(quoted(i) for i in ids[:10])
        raise ApiError(
            400,
            f"The offer is for {named}, but {spec.id} is loaded. Load the pipeline first, then offer again.",
        )


class _Assets:
    """The images that an update names, in the assets directory, which is walked once at the most."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path_of(self, name: str, loc: tuple[str | int, ...]) -> str:
        """An image's POSIX path relative to the directory. Raises ValidationFailed."""
        try:
            path = resolve_inside(self._directory, name)
        except PathNotAllowedError as error:
            raise ValidationFailed([_problem("path_not_allowed", loc, str(error), name)]) from error
        if not is_file(path) and Path(name).name == name:
            path = self._by_name.get(name, path)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            text = f"An image is needed: {', '.join(sorted(IMAGE_SUFFIXES))}"
            raise ValidationFailed([_problem("path_not_allowed", loc, text, name)])
        if not is_file(path):
            text = f"No such asset: '{quoted(name, 200)}'. Upload it first, and use the path of the answer"
            raise ValidationFailed([_problem("file_not_found", loc, text, name)])
        return path.relative_to(self._directory.resolve()).as_posix()

    @functools.cached_property
    def _by_name(self) -> dict[str, Path]:
        """The images in sub-directories by their bare names; of equal ones the first by its path."""
        root = self._directory.resolve()
        found = sorted(
            Path(folder) / name
            for folder, _, names in os.walk(root)
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES
        )
        return {path.name: path for path in reversed(found) if path.resolve().is_relative_to(root)}


def _accept(
    name: str, key: str, value: Any, context: ParameterContext, assets: _Assets, result: Validated
) -> None:
    """Put a valid value into `result`. Raises ValidationFailed."""
    adapter = FIELDS[name]
    plain = adapter.dump_python(check(adapter, value, key))
    if name == "lora_scales":
        plain = _lora_scales(key, plain, context, result)
    elif name in IMAGE_KEYS:
        plain = _images(key, plain, assets)
        _require_images(key, plain, context)
    remark = _without_effect(name, plain, context)
    if remark is not None:
        result.remarks.append(_problem("unavailable", key, remark, plain))
    else:
        result.values[name] = plain
        hint = hint_at(name, plain) if context.spec.supports_prompts else None
        if hint is not None:
            result.remarks.append(_problem(PLAIN_WORDS, key, hint, plain))


def _without_effect(name: str, value: Any, context: ParameterContext) -> str | None:
    """Why a valid value cannot do anything on this server or with the loaded pipeline."""
    wants_vace = (name == "vace_enabled" or name in VACE_IMAGE_KEYS) and value
    wants_vace = wants_vace or (name == "vace_preprocessor" and value != "none")
    if wants_vace and not context.vace_loaded:
        return (
            "VACE is not loaded; load the pipeline with vace_enabled true"
            if context.spec.supports_vace
            else f"{context.spec.id} has no VACE"
        )
    return None


def _clamped(key: str, value: Any, result: Validated) -> float:
    number = check(_ANY_NUMBER, value, key)
    clamped = min(max(number, 0.0), _MAX_VACE_SCALE)
    if clamped != number:
        kind = "less_than_equal" if number > clamped else "greater_than_equal"
        text = f"{number:g} is outside 0 to {_MAX_VACE_SCALE:g}; {clamped:g} is used"
        result.remarks.append(_problem(kind, key, text, value))
    return float(clamped)


def _lora_scales(
    key: str, entries: list[Any], context: ParameterContext, result: Validated
) -> list[dict[str, Any]]:
    """The valid entries; each bad one is a problem of its own, and so is one that can do nothing.

    A null scale leaves the adapter as it is.
    """
    valid = []
    for i, entry in enumerate(entries):
        try:
            scale = check(_LORA_SCALE, entry, key, i)
        except ValidationFailed as error:
            result.problems.extend(error.problems[:1])
            continue
        why_not = _not_turned(scale.path, context)
        if why_not is not None:
            result.remarks.append(_problem("unavailable", (key, i, "path"), why_not, scale.path))
        elif scale.scale is not None:
            valid.append({"path": scale.path, "scale": scale.scale})
    return valid


def _not_turned(path: str, context: ParameterContext) -> str | None:
    """Why a scale for this file would do nothing."""
    if not context.spec.supports_lora or "loras" not in context.load_params:
        return None
    loaded = {entry["path"]: entry["merge_mode"] for entry in context.load_params["loras"] or ()}
    if path not in loaded:
        return f"LoRA '{quoted(path, 200)}' is not loaded"
    if loaded[path] != "runtime_peft":
        return (
            f"LoRA '{quoted(path, 200)}' is merged into the weights, so its scale is fixed; load it with "
            "merge_mode runtime_peft to turn it"
        )
    return None


def _images(key: str, value: str | list[str], assets: _Assets) -> str | list[str]:
    """The same images as POSIX paths relative to the assets directory. Raises ValidationFailed."""
    if isinstance(value, str):
        return assets.path_of(value, (key,))
    return [assets.path_of(name, (key, i)) for i, name in enumerate(value)]


def _require_images(key: str, value: str | list[str], context: ParameterContext) -> None:
    """Raise ValidationFailed for images whose header is broken, or that are too large to be decoded."""
    problems = []
    for name in [value] if isinstance(value, str) else value:
        pixels = image_pixels(context.assets_directory / name)
        if pixels is None:
            text = f"'{quoted(name, 200)}' cannot be decoded: upload it again"
            problems.append(_problem("undecodable", key, text, name))
        elif pixels > MAX_PIXELS:
            limit = f"{MAX_PIXELS // 1_000_000} megapixels"
            text = f"'{quoted(name, 200)}' has more than {limit}: make it smaller"
            problems.append(_problem("too_large", key, text, name))
    if problems:
        raise ValidationFailed(problems)


def _problem(kind: str, key: str | tuple[str | int, ...], text: str, value: Any) -> Problem:
    loc: Iterable[str | int] = (key,) if isinstance(key, str) else key
    return Problem(type=kind, loc=list(loc), msg=text, input=echo(value))
