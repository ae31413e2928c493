"""The words that the gateway and a pipeline's Triton model exchange.

One WebRTC session is one Triton sequence, one request is one command, one `generate` request is one chunk.
Tensor `params` of a request holds one JSON object, `{"op": ..., "parameters": {...}}`; tensor `video` holds
input pictures, uint8 `[T, H, W, 3]` RGB. A response holds `frames`, uint8 `[T, H, W, 3]` RGB (T may be 0),
and `meta`, one JSON object. Every request is answered by one or more responses; the last one carries Triton's
FINAL flag, on errors too. After a chunk that failed or was cancelled the session is as it was before, so the
parameters of that request have to be sent again. Torch-free: both sides import this module.
"""

from enum import Enum
from typing import Any, TypedDict


class Op(str, Enum):
    """What a request asks for."""

    START = "start"  # first request of a sequence; `parameters` is the session's full state
    GENERATE = "generate"  # one chunk; `parameters` holds the keys that changed since the last chunk
    KEEP_ALIVE = "keep_alive"  # no work; the session is paused and must not idle out
    STOP = "stop"  # last request of a sequence
    WARMUP = "warmup"  # a sequence of its own, sent once after loading
    PROBE = "probe"  # a sequence of its own, without work: whether the model's process lives


class Command(TypedDict, total=False):
    """Tensor `params` of a request, as JSON."""

    op: str
    parameters: dict[str, Any]  # names and ranges of api.md 9.3, already validated


class Meta(TypedDict, total=False):
    """Tensor `meta` of a response, as JSON. Keys that do not apply are absent."""

    chunk: int  # number of this chunk in the stream, from 0
    last: bool  # true in the last response of a request
    timings_ms: dict[str, float]  # by step: text, denoise, clean, decode, ...
    warnings: list[str]  # sentences for the user
    transition_active: bool  # a prompt transition is still running after this chunk
    fatal: bool  # beside an error: retrying will not help


PARAMS_INPUT = "params"
VIDEO_INPUT = "video"
FRAMES_OUTPUT = "frames"
META_OUTPUT = "meta"

# Parameters that hold for one chunk only and never become part of a session's state (api.md 9.2).
ONE_SHOT = frozenset(
    {"init_cache", "lora_scales", "vace_ref_images", "first_frame_image", "last_frame_image", "images"}
)

_FATAL = "Fatal: "


def encode_error(text: str, *, fatal: bool) -> str:
    """The text of an error response; Triton sends no `meta` with an error."""
    return f"{_FATAL}{text}" if fatal else text


def decode_error(text: str) -> tuple[str, bool]:
    """Inverse of `encode_error`: (text for the user, whether another try is useless)."""
    return (text[len(_FATAL) :], True) if text.startswith(_FATAL) else (text, False)
