"""The words that the gateway and a pipeline's Triton model exchange.

One WebRTC session is one Triton sequence, one request is one command, one `generate` request is one chunk.
Tensor `params` of a request holds one JSON object, `{"op": ..., "parameters": {...}}`; tensor `video` holds
input pictures, uint8 `[T, H, W, 3]` RGB; images among the parameters are pixels, too, see
`streaming/triton/images.py`. A response holds `frames`, uint8 `[T, H, W, 3]` RGB (T may be 0),
and `meta`, one JSON object. The last response to a request carries Triton's FINAL flag, errors too; `give_up`
and `keep_alive` have no response unless they fail. Every `generate` carries all parameters in force, and a
chunk that failed or was given up leaves the session as it was: sending the request again is always right,
also on a new sequence when the old one is lost. Torch-free: both sides import this module.
"""

from enum import Enum
from typing import Final, TypedDict

CHUNK_LIMIT_S: Final = 300.0  # without a response to a chunk for so long, the serving side counts as dead
IDLE_LIMIT_S: Final = 330  # silent for longer, a sequence is forgotten


class Op(str, Enum):
    """What a request asks for."""

    GENERATE = "generate"  # one chunk; `parameters` is all that is in force, and one-shot keys of this chunk
    GIVE_UP = "give_up"  # end the sequence's chunk without pictures, unless the first are on their way
    KEEP_ALIVE = "keep_alive"  # no work: the sequence must not idle out; fails in a dead process
    PREPROCESS = "preprocess"  # no chunk: what VACE is to be shown; `preprocessor` names how, `frames` is it
    STOP = "stop"  # last request of a sequence; a chunk in the making ends without more pictures
    WARMUP = "warmup"  # a sequence of its own, sent once after loading
    ADAPT = "adapt"  # a sequence of its own: other LoRA files beside the weights, between two chunks
    PROBE = "probe"  # a sequence of its own, without work: whether the model's process lives


class Meta(TypedDict, total=False):
    """Tensor `meta` of a response, as JSON. Keys that do not apply are absent."""

    chunk: int  # number of this chunk in the stream, from 0
    last: bool  # true in the last response of a request
    given_up: bool  # there is no chunk: it was not wanted any more before its first picture
    timings_ms: dict[str, float]  # by step: text, denoise, clean, decode, ...
    warnings: list[str]  # sentences for the user
    transition_active: bool  # a prompt transition is still running after this chunk


PARAMS_INPUT = "params"
VIDEO_INPUT = "video"
FRAMES_OUTPUT = "frames"
META_OUTPUT = "meta"


class ErrorKind(str, Enum):
    """What an error means for the stream; the value goes before the text, for an error has no `meta`."""

    CHUNK = ""  # this chunk failed, the next one may work
    FATAL = "Fatal: "  # another try is useless
    UNKNOWN_SEQUENCE = "Unknown sequence: "  # not started, or forgotten; the same request may start it


def encode_error(text: str, kind: ErrorKind = ErrorKind.CHUNK) -> str:
    """The text of an error response."""
    return f"{kind.value}{text}"


def decode_error(text: str) -> tuple[str, ErrorKind]:
    """Inverse of `encode_error`: text for the user, and what it means."""
    for kind in (ErrorKind.FATAL, ErrorKind.UNKNOWN_SEQUENCE):
        if text.startswith(kind.value):
            return text[len(kind.value) :], kind
    return text, ErrorKind.CHUNK
