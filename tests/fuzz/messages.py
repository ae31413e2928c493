"""Data-channel messages: right ones, almost right ones, and anything else that fits into a message."""

import json
from typing import Any, get_args

from hypothesis import strategies as st

from streaming.specs import Preprocessor

Message = str | bytes

_ANY_TEXT = st.text(max_size=40)
_ANY_NUMBER = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 1e308])
_SCALAR = st.none() | st.booleans() | _ANY_NUMBER | _ANY_TEXT
ANYTHING = st.recursive(
    _SCALAR,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(_ANY_TEXT, inner, max_size=6),
    max_leaves=25,
)

_UNIT = st.floats(0, 1)
_METHOD = st.sampled_from(["linear", "slerp"])
_PROMPT = st.fixed_dictionaries({"text": _ANY_TEXT}, optional={"weight": st.floats(0, 100)})
_PROMPTS = _ANY_TEXT | st.lists(_PROMPT | _ANY_TEXT, min_size=1, max_size=16)
_STEPS = st.sets(st.integers(1, 1000), min_size=1, max_size=10).map(lambda s: sorted(s, reverse=True))
_PATH = st.sampled_from(["a.png", "/etc/passwd", "../a.png", "a\0.png", "."]) | _ANY_TEXT
_SPOUT = st.fixed_dictionaries({}, optional={"enabled": st.booleans(), "name": _ANY_TEXT})

# Of the right form; whether they make sense depends on the pipeline and on the files there are.
WELL_FORMED: dict[str, st.SearchStrategy[Any]] = {
    "input_mode": st.sampled_from(["text", "video"]),
    "prompts": _PROMPTS,
    "prompt_interpolation_method": _METHOD,
    "spatial_interpolation_method": _METHOD,
    "transition": st.fixed_dictionaries(
        {"target_prompts": _PROMPTS},
        optional={"num_steps": st.integers(0, 1000), "temporal_interpolation_method": _METHOD},
    ),
    "denoising_step_list": _STEPS,
    "noise_scale": _UNIT,
    "noise_controller": st.booleans(),
    "manage_cache": st.booleans(),
    "reset_cache": st.booleans(),
    "kv_cache_attention_bias": st.floats(0.01, 1),
    "base_seed": st.integers(0, 2**63),
    "seed": st.integers(0, 2**32),
    "lora_scales": st.lists(st.fixed_dictionaries({"path": _PATH, "scale": st.floats(-10, 10)}), max_size=70),
    "vace_ref_images": st.lists(_PATH, max_size=20),
    "first_frame_image": _PATH,
    "last_frame_image": _PATH,
    "images": st.lists(_PATH, max_size=3),
    "vace_context_scale": st.floats(0, 2),
    "vace_enabled": st.booleans(),
    "vace_use_input_video": st.booleans(),
    "vace_preprocessor": st.sampled_from(get_args(Preprocessor)),
    "paused": st.booleans(),
    "recording": st.just(False),  # a take would hold its stream
    "spout_sender": _SPOUT,
    "spout_receiver": _SPOUT,
    "pipeline_ids": st.lists(_ANY_TEXT, max_size=3),
    "height": st.integers(),
    "width": st.integers(),
}


@st.composite
def _updates(draw: st.DrawFn) -> dict[str, Any]:
    """Known names with values that are well formed, null, or anything; unknown names among them."""
    names = draw(st.lists(st.sampled_from(sorted(WELL_FORMED)), max_size=6, unique=True))
    update = {name: draw(WELL_FORMED[name] | st.none() | ANYTHING) for name in names}
    return update | draw(st.dictionaries(_ANY_TEXT, ANYTHING, max_size=2))


@st.composite
def _damaged(draw: st.DrawFn) -> str:
    """JSON text with a piece cut out and another put in."""
    text = json.dumps(draw(_updates()))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, len(text)))
    return text[:start] + draw(st.text('{}[]":,\\0123456789eE+-tfn\0 ', max_size=8)) + text[end:]


def messages() -> st.SearchStrategy[Message]:
    """One message as it goes over the wire; NaN and Infinity, which json.dumps writes, are not JSON."""
    as_text = _updates().map(json.dumps)
    not_escaped = _updates().map(lambda update: json.dumps(update, ensure_ascii=False))
    return st.one_of(
        as_text,
        as_text.map(str.encode),
        not_escaped.map(lambda text: text.encode("utf-8", "surrogatepass")),
        ANYTHING.map(json.dumps),
        _damaged(),
        st.binary(max_size=200),
        _ANY_TEXT.filter(lambda text: text.isascii()),
    )
