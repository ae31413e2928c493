"""The way from what a stream is set to now to what it is to be set to, chunk by chunk."""

from collections.abc import Mapping
from typing import Any, Final

from gateway.recording.replay import Script, Step
from gateway.stream.parameters.checks import MAX_TRANSITION_CHUNKS, name_of
from gateway.stream.stream import Stream
from streaming.specs import Interpolation

MAX_TRANSITION_S: Final = 300.0

_FADED: Final = ("noise_scale", "vace_context_scale", "kv_cache_attention_bias")  # the rest changes at once


def fade(
    stream: Stream, values: Mapping[str, Any], seconds: float, method: Interpolation = "linear"
) -> Script:
    """Steps to `values` within about `seconds`: chunks are the grid. Prompts go by a transition."""
    chunks = min(MAX_TRANSITION_CHUNKS, round(seconds / stream.output.chunk_seconds)) if seconds else 0
    target = {name_of(key): value for key, value in values.items()}
    if chunks < 2:
        return Script({}, [Step(0, 0.0, target)], 0, 0.0)
    ways = {name: way for name in _FADED if (way := _way(stream, name, target.get(name), chunks))}
    scales = _scales(stream, target.get("lora_scales"), chunks)
    first = {name: value for name, value in target.items() if name not in ways}
    if scales:
        first.pop("lora_scales")
    prompts = first.pop("prompts", None)
    if prompts is not None and "transition" not in first:
        first["transition"] = {
            "target_prompts": prompts,
            "num_steps": chunks,
            "temporal_interpolation_method": method,
        }
    elif prompts is not None:
        first["prompts"] = prompts
    steps = []
    for number in range(chunks):
        step: dict[str, Any] = {name: way[number] for name, way in ways.items()}
        if scales:
            step["lora_scales"] = scales[number]
        if number == 0:
            step |= first
        if step:
            steps.append(Step(number, 0.0, step))
    return Script({}, steps, chunks - 1, 0.0)


def _way(stream: Stream, name: str, to: Any, chunks: int) -> list[float]:
    """Values of a parameter, the last one being the goal; none where there is no way."""
    now = stream.state.effective.get(name)
    if now is None or not _is_number(to):
        return []
    return _between(now, to, chunks)


def _scales(stream: Stream, to: Any, chunks: int) -> list[list[dict[str, Any]]]:
    """Messages of LoRA scales; none where the adapters' scales of now are not known."""
    loaded = stream.worker.loaded
    now = {a["path"]: a["scale"] for a in (loaded.lora_adapters() if loaded else None) or ()}
    if not isinstance(to, list) or not to:
        return []
    if any(not isinstance(e, dict) or e.get("path") not in now or not _is_number(e.get("scale")) for e in to):
        return []
    ways = {entry["path"]: _between(now[entry["path"]], entry["scale"], chunks) for entry in to}
    return [[{"path": path, "scale": way[number]} for path, way in ways.items()] for number in range(chunks)]


def _between(now: float, to: float, chunks: int) -> list[float]:
    return [*(round(now + (to - now) * (n + 1) / chunks, 6) for n in range(chunks - 1)), to]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
