"""What POST /api/v1/pipeline/load asks for: which pipeline, with which parameters (api.md 4.1 to 4.3)."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter
from pydantic_core import PydanticCustomError, PydanticKnownError

from gateway.errors import ApiError, Problem, ValidationFailed
from gateway.http.bodies import LoadBody
from gateway.http.paths import PathNotAllowedError, is_file, resolve_inside
from gateway.http.validation import FilePath, Integer, Number, Seed, check, located, quoted
from gateway.serving.interface import Availability, Combination, fp8_remedy, offers_vace
from streaming.engines.load_plan import VACE_CHOICES, BackendChoice, EncoderCache
from streaming.specs import LOAD_CHOICES, SPECS, LoraMergeMode, PipelineSpec, Quantization, SizeRange, VaeType

Loc = tuple[str | int, ...]

LORA_SUFFIX: Final = ".safetensors"
_MAX_LORAS: Final = 32
MAX_INTERVAL: Final = 1000  # chunks between two records of a memory bank
_MERGE_MODE: Final[LoraMergeMode] = "permanent_merge"
_VAE_TYPE: Final[VaeType] = "wan"

# Scope's page sends these as load parameters although they belong to a stream.
_IGNORED: Final = frozenset({"vace_context_scale", "vace_ref_images", "ref_images"})
# Other names of the same parameter; the first one wins.
_ALIASES: Final = (("base_seed", "seed"), ("lora_merge_mode", "lora_merge_strategy"))


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """An accepted request.

    params: everything in force, defaults included, in the order that the status shows. warnings: sentences
    about ignored keys and adjusted values. chosen: names of those that the client gave.
    """

    spec: PipelineSpec
    params: dict[str, Any]
    warnings: list[str]
    chosen: frozenset[str]

    @property
    def explicit_size(self) -> bool:
        """Whether the client named a height or a width."""
        return bool(self.chosen & {"height", "width"})


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What decides whether a request can be fulfilled here.

    vram_gib: total memory of the GPU, None when there is none or nobody can tell.
    """

    availability: Callable[[PipelineSpec, BackendChoice], Availability]
    lora_directories: Sequence[Path]  # relative paths are looked up in this order
    vram_gib: float | None = None


def parse_load_request(body: Mapping[str, Any], context: LoadContext) -> LoadRequest:
    """Read and check the body of a load request.

    Raises ValidationFailed (422: wrong form, type or range), ApiError 400 (no or several pipelines; a
    pipeline, size, autoencoder or LoRA file that cannot be served here) and 404 (unknown pipeline).
    """
    choice = _choose(check(_BODY, body, "body"))
    spec = SPECS.get(choice.pipeline_id)
    if spec is None:
        known = ", ".join(SPECS)
        raise ApiError(404, f"Unknown pipeline: {quoted(choice.pipeline_id)}. Known pipelines: {known}.")
    availability = context.availability(spec, _backend(choice.load_params))
    if not availability.available:
        raise ApiError(400, availability.reason or f"Pipeline {spec.id} cannot be loaded on this server.")
    fields = _fields(spec, _knows_vace(spec, availability))
    values, warnings = _checked(fields, spec.id, choice.load_params, choice.loc)
    warnings = [*choice.warnings, *warnings, *_vram_warnings(spec, context.vram_gib)]
    warnings += _quantization_warnings(spec, values, availability, context.vram_gib)
    _require_engines(spec, values, availability)
    params = _effective(spec, values, availability, context.vram_gib)
    explicit_size = "height" in values or "width" in values
    if explicit_size:
        _require_resolution(spec, params, availability)
    if availability.combinations is not None:
        warnings += _take_combination(spec, params, values, availability.combinations)
    if not explicit_size and (params["height"], params["width"]) != (spec.height, spec.width):
        usual = f"its usual {spec.height}x{spec.width}"
        if (spec.height, spec.width) in (availability.supported_resolutions or ()):
            usual += " with these parameters"
        warnings.append(
            f"No size was given: using {params['height']}x{params['width']} (height x width), because "
            f"{spec.id} is not built for {usual} here."
        )
    warnings += _leave_out_vace(spec, params, values, availability)
    if "vae_type" in params and params["vae_type"] not in availability.vae_types:
        raise ApiError(
            400,
            f"vae_type '{params['vae_type']}' is not available for {spec.id} on this server; "
            f"available: {', '.join(availability.vae_types)}.",
        )
    _require_lora_files([lora["path"] for lora in params.get("loras") or ()], context.lora_directories)
    return LoadRequest(spec, params, warnings, frozenset(values))


def _backend(load_params: Mapping[str, Any]) -> BackendChoice:
    """What is asked for; a value that is none is refused later, with everything else that is wrong."""
    asked = load_params.get("backend")
    return next((known for known in get_args(BackendChoice) if known == asked), "auto")


def default_size(spec: PipelineSpec, availability: Availability) -> tuple[int, int]:
    """(height, width) of a load that names no size: the pipeline's own, or the first one that is built."""
    sizes = availability.supported_resolutions
    if not sizes or (spec.height, spec.width) in sizes:
        return spec.height, spec.width
    return sizes[0]


def find_lora(name: str, directories: Sequence[Path]) -> Path:
    """The file that a client's LoRA path means (lora.md 1.5).

    Raises ApiError 400 with class `path_not_allowed` or `file_not_found`.
    """
    allowed = False
    for directory in directories:
        try:
            path = resolve_inside(directory, name)
        except PathNotAllowedError:
            continue
        if path.suffix.lower() != LORA_SUFFIX:
            break
        allowed = True
        if is_file(path):
            return path
    places = ", ".join(str(d) for d in directories)
    if allowed:
        raise ApiError(400, f"LoRA '{quoted(name, 200)}' (file_not_found): no such file in {places}.")
    raise ApiError(
        400,
        f"LoRA '{quoted(name, 200)}' (path_not_allowed): use a {LORA_SUFFIX} file inside {places}.",
    )


def lora_adapters(spec: PipelineSpec, params: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """`loaded_lora_adapters` of the status once `params` are loaded: merged ones first, as they are applied.

    None for a pipeline without LoRA support.
    """
    if not spec.supports_lora:
        return None
    adapters = []
    for entry in sorted(params.get("loras") or (), key=lambda lora: lora["merge_mode"] != _MERGE_MODE):
        adapter = {key: entry[key] for key in ("path", "scale", "merge_mode")}
        if entry["merge_mode"] == "runtime_peft":
            adapter["adapter_name"] = re.sub(r"[./\\ -]", "_", Path(entry["path"]).stem)
        adapters.append(adapter)
    return adapters


_BODY: Final = TypeAdapter(LoadBody)


@dataclass(frozen=True, slots=True)
class _Choice:
    pipeline_id: str
    load_params: Mapping[str, Any]
    loc: Loc  # where in the body the load parameters are
    warnings: list[str]


def _choose(body: LoadBody) -> _Choice:
    """One pipeline and its load parameters, out of the three forms. Raises ApiError 400."""
    forms: dict[str, list[str]] = {}
    if body.pipelines is not None:
        forms["pipelines"] = _unique(node.pipeline_id for node in body.pipelines)
    if body.pipeline_ids is not None:
        forms["pipeline_ids"] = _unique(body.pipeline_ids)
    if body.pipeline_id is not None:
        forms["pipeline_id"] = [body.pipeline_id]
    ids = next(iter(forms.values()), [])
    if any(other != ids for other in forms.values()):
        names = " and ".join(f"'{name}'" for name in forms)
        raise ApiError(400, f"{names} name different pipelines; send only one of them.")
    if not ids:
        raise ApiError(
            400, "No pipeline named: send 'pipeline_id', 'pipeline_ids' or 'pipelines' with one known id."
        )
    if len(ids) > 1:
        extra = ", ".join(quoted(i) for i in ids[1:10])
        raise ApiError(400, f"Pipeline chaining is not supported: load one pipeline only, without {extra}.")
    return _Choice(ids[0], *_load_params(body))


def _load_params(body: LoadBody) -> tuple[Mapping[str, Any], Loc, list[str]]:
    given = [
        (node.load_params, ("body", "pipelines", i, "load_params"))
        for i, node in enumerate(body.pipelines or ())
        if node.load_params is not None
    ]
    outer: Loc = ("body", "load_params")
    if not given:
        return body.load_params or {}, outer, []
    params, loc = given[0]
    if any(other != params for other, _ in given):
        raise ApiError(400, "'pipelines' names one pipeline with different load_params; send it once.")
    if body.load_params and body.load_params != params:
        return params, loc, ["load_params was ignored: the entry of 'pipelines' has its own."]
    return params, loc, []


def _unique(ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(ids))


class _Lora(BaseModel):
    path: FilePath
    scale: Annotated[Number, Field(ge=-10, le=10)] = 1.0
    merge_mode: LoraMergeMode | None = None


def _fits(size: SizeRange, name: str, value: int) -> int:
    if value < size.minimum:
        raise PydanticKnownError("greater_than_equal", {"ge": size.minimum})
    if value > size.maximum:
        raise PydanticKnownError("less_than_equal", {"le": size.maximum})
    if value % size.step:
        raise PydanticCustomError(
            "multiple_of",
            f"Input should be a multiple of {size.step}; the nearest valid {name} is {size.nearest(value)}",
            {"multiple_of": size.step},
        )
    return value


def _knows_vace(spec: PipelineSpec, availability: Availability) -> bool:
    """Whether a load has the parameters of VACE, of use here or not."""
    return spec.supports_vace and (spec.names_vace or offers_vace(spec, availability))


@cache
def _fields(spec: PipelineSpec, knows_vace: bool) -> dict[str, TypeAdapter[Any]]:
    """The load parameters that a pipeline knows, aliases included. knows_vace: those of VACE, too"""
    fields: dict[str, Any] = {
        name: Annotated[Integer, AfterValidator(partial(_fits, spec.size, name))]
        for name in ("height", "width")
    }
    if spec.loop is not None:
        fields |= {"base_seed": Seed, "seed": Seed, "vae_type": VaeType, "backend": BackendChoice}
    if spec.loop is not None and spec.loop.bank_size:
        fields["record_interval"] = Annotated[Integer, Field(ge=1, le=MAX_INTERVAL)] | None
    if spec.loop is not None and spec.loop.sink_ema_decay is not None:
        fields["sink_ema_float32"] = bool
    if spec.supports_quantization:
        fields["quantization"] = Quantization | None
    if knows_vace:
        fields |= {"vace_enabled": bool, "vace_encoder_cache": EncoderCache, "vace_pad_attention": bool}
    if spec.supports_lora:
        fields["loras"] = Annotated[list[_Lora], Field(max_length=_MAX_LORAS)] | None
        fields |= {"lora_merge_mode": LoraMergeMode, "lora_merge_strategy": LoraMergeMode}
    return {name: TypeAdapter(kind) for name, kind in fields.items()}


_NULL_MEANS_NONE: Final = frozenset(
    {"quantization", "loras", "record_interval"}
)  # for the others null is the default


def _checked(
    fields: Mapping[str, TypeAdapter[Any]], pipeline_id: str, given: Mapping[str, Any], loc: Loc
) -> tuple[dict[str, Any], list[str]]:
    """(valid values by name without aliases, warnings). Raises ValidationFailed with every problem."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    warnings: list[str] = []
    for key, value in given.items():
        if key not in fields:
            if key not in _IGNORED:
                warnings.append(
                    f"Load parameter '{quoted(key)}' was ignored: {pipeline_id} has no such parameter."
                )
        elif value is not None or key in _NULL_MEANS_NONE:
            try:
                values[key] = check(fields[key], value, key)
            except ValidationFailed as error:
                problems += error.problems
    if problems:
        raise ValidationFailed(located(problems, *loc))
    for name, alias in _ALIASES:
        if alias in values:
            values.setdefault(name, values.pop(alias))
            values.pop(alias, None)
    return values, warnings[:20]


def _effective(
    spec: PipelineSpec, values: Mapping[str, Any], availability: Availability, vram_gib: float | None
) -> dict[str, Any]:
    """All parameters in force, keys in the order of Scope's status."""
    params: dict[str, Any] = {}
    if spec.supports_lora:
        mode = values.get("lora_merge_mode", _MERGE_MODE)
        loras: list[_Lora] = values.get("loras") or []
        entries = [{"path": x.path, "scale": x.scale, "merge_mode": x.merge_mode or mode} for x in loras]
        params |= {"loras": entries or None, "lora_merge_mode": mode}
    height, width = default_size(spec, availability)
    if "height" in values or "width" in values:
        height, width = values.get("height", spec.height), values.get("width", spec.width)
    params |= {"height": height, "width": width}
    if spec.loop is not None:
        seed = values.get("base_seed", spec.base_seed)
        params |= {"seed": seed, "base_seed": seed}
    if spec.supports_quantization:
        default = _default_quantization(spec, vram_gib)
        default = default if default in availability.quantizations else None
        params["quantization"] = values.get("quantization", default)
    if _knows_vace(spec, availability):
        params["vace_enabled"] = availability.vace and values.get("vace_enabled", availability.vace_default)
    if spec.loop is not None:
        params["vae_type"] = values.get("vae_type", _VAE_TYPE)
    chosen = {name: values[name] for name in LOAD_CHOICES if name in values}
    # Scope's status has no such keys: they are there when they say something.
    params |= {name: value for name, value in chosen.items() if value != getattr(spec.loop, name)}
    params |= {name: values[name] for name in VACE_CHOICES if name in values}
    backend: BackendChoice = values.get("backend", "auto")
    return params if backend == "auto" else params | {"backend": backend}


def _default_quantization(spec: PipelineSpec, vram_gib: float | None) -> Literal["fp8_e4m3fn"] | None:
    """fp8 where the pipeline would not fit otherwise; none without a GPU: there are no fp8 engines then."""
    threshold = spec.quantization_vram_threshold_gib
    if threshold is None or vram_gib is None or vram_gib > threshold:
        return None
    return "fp8_e4m3fn"


def _vram_warnings(spec: PipelineSpec, vram_gib: float | None) -> list[str]:
    if spec.estimated_vram_gb is None or vram_gib is None or vram_gib >= spec.estimated_vram_gb:
        return []
    return [
        f"{spec.id} needs about {spec.estimated_vram_gb:.0f} GB of GPU memory, this GPU has {vram_gib:.1f}; "
        "loading may fail. Try a smaller size or quantization."
    ]


def _quantization_warnings(
    spec: PipelineSpec, values: Mapping[str, Any], availability: Availability, vram_gib: float | None
) -> list[str]:
    """Where nobody chose, fp8 is wanted, and there are no such engines."""
    wanted = _default_quantization(spec, vram_gib)
    if "quantization" in values or wanted is None or wanted in availability.quantizations:
        return []
    return [
        f"{spec.id} would be loaded with {wanted} on this GPU, but there are no such engines. "
        f"{fp8_remedy(spec.id)}."
    ]


def _require_resolution(spec: PipelineSpec, params: Mapping[str, Any], availability: Availability) -> None:
    sizes = availability.supported_resolutions
    if sizes is None or (params["height"], params["width"]) in sizes:
        return
    listed = ", ".join(f"{height}x{width}" for height, width in sizes)
    raise ApiError(
        400,
        f"{spec.id} is not built for {params['height']}x{params['width']} (height x width) on this server; "
        f"supported: {listed}.",
    )


def _take_combination(
    spec: PipelineSpec, params: dict[str, Any], values: Mapping[str, Any], combinations: Sequence[Combination]
) -> list[str]:
    """Set what nobody chose to what goes with what somebody chose; returns warnings.

    Raises ApiError 400, with what comes nearest, when nothing does.
    """
    wanted = Combination(params["height"], params["width"], params["vae_type"], params.get("quantization"))
    named = {name for name in ("vae_type", "quantization") if name in values}
    named |= {"size"} if "height" in values or "width" in values else set()
    nearest = max(combinations, key=lambda found: _likeness(found, wanted, named))
    if any(getattr(nearest, name) != getattr(wanted, name) for name in named):
        raise ApiError(
            400,
            f"{spec.id} is not built for {_described(wanted)} on this server. The nearest that it is built "
            f"for: {_described(nearest)}.",
        )
    warnings = [
        f"No {name} was given: using {getattr(nearest, name)}, because {spec.id} is not built for "
        f"{_described(wanted)} here."
        for name in ("vae_type", "quantization")
        if getattr(nearest, name) != getattr(wanted, name)
    ]
    chosen = {"height": nearest.height, "width": nearest.width, "vae_type": nearest.vae_type}
    params.update(chosen | ({"quantization": nearest.quantization} if "quantization" in params else {}))
    return warnings


def _leave_out_vace(
    spec: PipelineSpec, params: dict[str, Any], values: Mapping[str, Any], availability: Availability
) -> list[str]:
    """Turn off what the chosen engines have no VACE branch for; returns a warning if it was asked for."""
    chosen = Combination(
        params["height"], params["width"], params.get("vae_type", _VAE_TYPE), params.get("quantization")
    )
    if params.get("vace_enabled") and chosen not in (availability.combinations or (chosen,)):
        params["vace_enabled"] = False
    if not values.get("vace_enabled") or params["vace_enabled"]:
        return []
    where = f" for {_described(chosen)}" if availability.vace else ""
    return [
        f"vace_enabled was ignored: {spec.id} has no VACE engine{where} here. Engines with it: "
        f"wanstream-export {spec.id} --vace."
    ]


def _likeness(found: Combination, wanted: Combination, named: Collection[str]) -> tuple[int, ...]:
    """What somebody named counts before defaults, the size before the rest; then how near the size is."""
    parts = ("size", "vae_type", "quantization")
    equal = {name: getattr(found, name) == getattr(wanted, name) for name in parts}
    distance = abs(found.height - wanted.height) + abs(found.width - wanted.width)
    return (sum(equal[name] for name in named), *(equal[name] for name in parts), -distance)


def _described(found: Combination) -> str:
    quantization = "" if found.quantization is None else f" and quantization {found.quantization}"
    size = f"{found.height}x{found.width} (height x width)"
    return f"{size} with vae_type {found.vae_type}{quantization}"


def _require_engines(spec: PipelineSpec, values: Mapping[str, Any], availability: Availability) -> None:
    """Refuse now what no engine can do, so that a loaded pipeline stays."""
    if values.get("loras") and not availability.loras:
        raise ApiError(
            400,
            f"LoRA files cannot be used with the exported engines of {spec.id} yet; load without 'loras'.",
        )
    modes = {lora.merge_mode for lora in values.get("loras") or ()} | {values.get("lora_merge_mode")}
    if "runtime_peft" in modes and not availability.runtime_loras:
        raise ApiError(
            400,
            f"The engines of {spec.id} take no LoRA files beside their weights, so lora_merge_mode "
            f"'runtime_peft' needs others. Run: wanstream-export {spec.id} --adapters, or load with "
            "'permanent_merge'.",
        )
    wanted = values.get("quantization")
    if wanted is not None and wanted not in availability.quantizations:
        raise ApiError(
            400,
            f"There are no engines of {spec.id} with {wanted} here; load with 'quantization' null. "
            f"{fp8_remedy(spec.id)}.",
        )


def _require_lora_files(names: Iterable[str], directories: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for name in names:
        path = find_lora(name, directories)
        if path in seen:
            raise ApiError(
                400, f"LoRA '{quoted(name, 200)}' (duplicate): the file is listed twice. List each file once."
            )
        seen.add(path)
