"""The parameters of one session over time. Nobody else keeps them: every chunk is told all that is in force.

Which values are valid is in `checks`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.errors import Problem, ValidationFailed
from gateway.http.strict_json import JsonError
from gateway.http.validation import located
from gateway.stream.parameters.checks import (
    IMAGE_KEYS,
    LIVE,
    TIMING,
    VACE_IMAGE_KEYS,
    WISHES,
    ParameterContext,
    Validated,
    newest_values,
    parse_message,
    require_pipeline,
    validate,
)
from gateway.stream.parameters.prompt_hints import PLAIN_WORDS
from streaming.specs import TEXT, PipelineSpec

__all__ = [
    "ChunkParameters",
    "ParameterContext",
    "ParameterState",
    "check_messages",
    "normalised",
    "parameters_of",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChunkParameters:
    """What one chunk is told.

    parameters: all that is in force, the one-shot values of this chunk, and `init_cache`: whether it must
    begin with fresh caches. changed: names of what the last good chunk was told otherwise, or not at all.
    """

    parameters: dict[str, Any]
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Taken:
    """What the chunk that is being made was given."""

    view: dict[str, Any]
    stored: dict[str, Any]
    reset: bool
    lora_scales: dict[str, float]
    images: dict[str, Any]


class ParameterState:
    """Merges a session's updates and hands them out chunk by chunk (api.md 9.2).

    All messages since the last chunk count, in order; the last value of a key wins. One-shot keys go to
    exactly one chunk: `reset_cache` is OR-ed, `lora_scales` merged by path, of images the last list counts.
    """

    def __init__(self, context: ParameterContext) -> None:
        self._context = context
        self._stored: dict[str, Any] = {}  # what the client set, by name; defaults are not in it
        self._good: dict[str, Any] | None = None  # the same when the last good chunk was taken
        self._shown: dict[str, Any] | None = None  # the view of the stream's last good chunk
        self._taken: _Taken | None = None
        self._reset = False
        self._lora_scales: dict[str, float] = {}  # for the next chunk
        self._scales_told: dict[str, float] = {}  # of the stream's good chunks
        self._images: dict[str, Any] = {}
        self._wishes: dict[str, Any] = {}
        self.timing: dict[str, Any] = {}  # `quantize_mode` and `lookahead_ms`, once they are set
        self._hinted = False  # at a notation in a prompt
        self.paused = False
        self._recording_wish: bool | None = None
        self.remarks: list[Problem] = []

    @classmethod
    def open(cls, context: ParameterContext, initial: Mapping[str, Any] | None) -> "ParameterState":
        """A session's state from an offer's `initialParameters`.

        What the offer asks for but cannot have here is in `remarks`, for the client to be told. Raises
        ValidationFailed (422) for wrong values and ApiError 400 when the offer names another pipeline.
        """
        validated = validate(initial or {}, context, strict=True)
        if validated.problems:
            raise ValidationFailed(located(validated.problems, "body", "initialParameters"))
        require_pipeline(validated.values, context.spec)
        state = cls(context)
        state._apply(validated.values)
        state.remarks = state._told_once(validated.remarks)
        return state

    @property
    def assets_directory(self) -> Path:
        """Where paths of images among a chunk's parameters begin."""
        return self._context.assets_directory

    @property
    def input_mode(self) -> str:
        """`text` or `video`: whether the next chunk needs input pictures."""
        mode: str = self._stored.get("input_mode", TEXT)
        modes = self._context.spec.modes
        return mode if mode in modes else modes[0]

    @property
    def input_mode_chosen(self) -> bool:
        """Whether anybody has said so."""
        return "input_mode" in self._stored

    def take_wishes(self) -> dict[str, Any]:
        """What was asked for since the last call that concerns the stream's sinks and source."""
        wishes, self._wishes = self._wishes, {}
        return wishes

    @property
    def reset_pending(self) -> bool:
        """Whether the client asked for fresh caches and no chunk has taken the wish yet."""
        return self._reset

    @property
    def outdated(self) -> bool:
        """Whether the chunk that is being made would be told something else if it began now."""
        taken, context = self._taken, self._context
        if taken is None:
            return False
        scales = context.spec.supports_lora and self._lora_scales
        return self._reset or bool(scales or self._vace_images) or self._view() != taken.view

    @property
    def effective(self) -> dict[str, Any]:
        """Every parameter in force, defaults included; `paused` too, one-shot keys not."""
        defaults = {name: declared.default(self._context) for name, declared in LIVE.items()}
        known = {key: value for key, value in self._stored.items() if key in defaults}
        return {"input_mode": self.input_mode, **defaults, **known, "paused": self.paused}

    def take_recording_wish(self) -> bool | None:
        """Whether to record from now on; None: nobody has said anything since the last call."""
        wish, self._recording_wish = self._recording_wish, None
        return wish

    def check(self, values: Mapping[str, Any]) -> Validated:
        """Judge a partial update, in whatever thread: nothing is applied yet."""
        return validate(values, self._context, strict=False)

    def apply(self, validated: Validated) -> list[Problem]:
        """Apply the valid part of a checked update; returns what to report to the client."""
        self._apply(validated.values)
        return validated.problems + self._told_once(validated.remarks)

    def merge(self, values: Mapping[str, Any]) -> list[Problem]:
        """Check and apply at once."""
        return self.apply(self.check(values))

    def rebase(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None:
        """Go on with another pipeline, or with a new stream on the same: the next chunk is its first."""
        self._put_back()
        again = _as_loaded_before(self._scales_told, self._context.load_params, load_params)
        self._lora_scales, self._scales_told = {**again, **self._lora_scales}, {}
        self._context = replace(self._context, spec=spec, load_params=load_params)
        self._shown = None

    def take_chunk(self) -> ChunkParameters:
        """Parameters of the next chunk.

        One-shot keys leave the state; they return when the chunk is reported neither as good nor as failed
        before the next call.
        """
        self._put_back()
        view, shown = self._view(), self._shown
        once: dict[str, Any] = {}
        if self._lora_scales and self._context.spec.supports_lora:
            once["lora_scales"] = [{"path": p, "scale": s} for p, s in self._lora_scales.items()]
        once |= self._vace_images
        fresh = self._reset or shown is None or shown["input_mode"] != view["input_mode"]
        changed = view.keys() if shown is None else {key for key in view if view[key] != shown[key]}
        self._taken = _Taken(view, dict(self._stored), self._reset, self._lora_scales, self._images)
        self._reset, self._lora_scales, self._images = False, {}, {}
        return ChunkParameters({**view, **once, "init_cache": fresh}, tuple(sorted(changed | once.keys())))

    def chunk_succeeded(self, meta: Mapping[str, object]) -> None:
        """The chunk of the last `take_chunk` is done. meta: as the pipeline reported it."""
        taken, self._taken = self._taken, None
        if taken is None:
            return
        self._shown, self._good = taken.view, taken.stored
        self._scales_told |= taken.lora_scales
        transition = taken.stored.get("transition")
        if transition is not None and not meta.get("transition_active"):
            for values in (self._stored, self._good):
                _finish(transition, values)

    def chunk_failed(self) -> Sequence[str]:
        """The chunk of the last `take_chunk` failed: what was new in it goes back to its last good value.

        Returns the names of the keys that were reverted; one-shot keys are dropped and named too. Values that
        came later stay, and so does a wish for fresh caches. Before the first good chunk there is nothing to
        go back to.
        """
        taken, self._taken = self._taken, None
        if taken is None:
            return []
        self._reset = self._reset or taken.reset
        reverted = [*taken.images, *(["lora_scales"] if taken.lora_scales else [])]
        last_good = taken.stored if self._good is None else self._good
        for key in taken.stored.keys() | last_good.keys():
            bad, good = taken.stored.get(key), last_good.get(key)
            if bad != good and self._stored.get(key) == bad:
                self._store(key, good)
                reverted.append(key)
        return sorted(reverted)

    def _apply(self, values: Mapping[str, Any]) -> None:
        if "prompts" in values:  # they end a transition, unless the same message brings one
            self._stored.pop("transition", None)
        for key, value in values.items():
            if key == "paused":
                self.paused = bool(value)
            elif key == "recording":
                self._recording_wish = bool(value)
            elif key == "reset_cache":
                self._reset = self._reset or bool(value)
            elif key == "lora_scales":
                self._lora_scales |= {entry["path"]: entry["scale"] for entry in value or ()}
            elif key in TIMING:
                self.timing[key] = value
            elif key in WISHES:
                self._wishes |= {key: value} if value is not None else {}
            elif key in IMAGE_KEYS:
                self._images.pop(key, None)
                self._images |= {key: value} if value else {}
            else:
                self._store(key, value)

    def _told_once(self, remarks: Sequence[Problem]) -> list[Problem]:
        """The remarks, of hints at a prompt's notation only the first: prompts may come at any rate."""
        kept = []
        for remark in remarks:
            is_hint = remark["type"] == PLAIN_WORDS
            if not (is_hint and self._hinted):
                kept.append(remark)
            self._hinted = self._hinted or is_hint
        return kept

    def _store(self, key: str, value: Any) -> None:
        if value is None:
            self._stored.pop(key, None)
        else:
            self._stored[key] = value

    def _put_back(self) -> None:
        taken, self._taken = self._taken, None
        if taken is not None:
            self._reset = self._reset or taken.reset
            self._lora_scales = {**taken.lora_scales, **self._lora_scales}
            self._images = {**taken.images, **self._images}

    @property
    def _vace_images(self) -> dict[str, Any]:
        """The images that the next chunk is told; `images` are for pipelines of another kind."""
        loaded = self._context.vace_loaded
        return {k: v for k, v in self._images.items() if loaded and k in VACE_IMAGE_KEYS}

    def _view(self) -> dict[str, Any]:
        """What the loaded pipeline is told; the same keys as long as the pipeline stays."""
        effective, spec = self.effective, self._context.spec
        view = {key: effective[key] for key in parameters_of(self._context)}
        if spec.supports_prompts:
            view["prompts"] = normalised(view["prompts"])
            if view["transition"] is not None:
                target = normalised(view["transition"]["target_prompts"])
                view["transition"] = {**view["transition"], "target_prompts": target}
        return view


def _as_loaded_before(
    scales: Mapping[str, float], before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, float]:
    """The scales of those adapters that a new load has as the one before had them: others have new ones."""
    known = before.get("loras") or ()
    kept = {entry["path"] for entry in now.get("loras") or () if entry in known}
    return {path: scale for path, scale in scales.items() if path in kept}


def parameters_of(context: ParameterContext) -> list[str]:
    """Names of the parameters that the pipeline makes use of in every chunk."""
    return ["input_mode", *(name for name, declared in LIVE.items() if declared.told(context))]


def _finish(transition: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Replace a transition that has run by its outcome, unless the client cancelled or replaced it."""
    if values.get("transition") is transition:
        del values["transition"]
        values["prompts"] = transition["target_prompts"]


def normalised(prompts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The prompts with weights that sum to 1; weights that are all zero become equal."""
    largest = max(prompt["weight"] for prompt in prompts)
    if largest == 0:
        return [{"text": prompt["text"], "weight": 1 / len(prompts)} for prompt in prompts]
    shares = [prompt["weight"] / largest for prompt in prompts]  # the sum of the weights could overflow
    total = sum(shares)
    return [
        {"text": prompt["text"], "weight": share / total}
        for prompt, share in zip(prompts, shares, strict=True)
    ]


def check_messages(
    state: ParameterState, messages: Sequence[str | bytes | None], together: bool
) -> list[Validated]:
    """Judge messages of a data channel, each by itself or all together as one update. None: too large a one.

    May read files; for a thread, where it never raises.
    """
    if together:
        return [state.check(newest_values(messages))]
    return [_checked(state, message) for message in messages]


def _checked(state: ParameterState, message: str | bytes | None) -> Validated:
    try:
        return state.check(parse_message(message))
    except JsonError as error:
        problem = Problem(loc=[], msg=f"Not a JSON object: {error}", type="json_invalid")
    except Exception:  # thread boundary: a message must never end the others
        logger.exception("A parameter message could not be handled")
        problem = Problem(loc=[], msg="The message could not be handled", type="internal_error")
    return Validated(problems=[problem])
