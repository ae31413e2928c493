"""Passthrough: the pictures that come in go out, byte for byte. Numpy only."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from streaming.errors import WanstreamError
from streaming.triton.protocol import Meta
from streaming.triton.sessions import Images, LoadContext, Stream


class Passthrough:
    """The pipeline without a model, and its only stream: there is no state, so all sessions share it."""

    def __init__(self, context: LoadContext) -> None:
        """`height` and `width` of the load are accepted and ignored: pictures keep their own size."""

    def open_stream(self) -> Stream:
        return self

    def warm_up(self) -> None:
        """Nothing is slow the first time."""

    def adapt(self, parameters: Mapping[str, Any]) -> None:
        """There are no weights. Raises WanstreamError."""
        raise WanstreamError("Pipeline passthrough has no LoRA files.")

    def close(self) -> None:
        """Nothing is held."""

    def next_chunk(
        self, parameters: Mapping[str, Any], video: Images | None, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Images, Meta]]:
        """Yield `video`, uint8 [T, H, W, 3], unchanged. Raises WanstreamError when there is none."""
        if video is None or len(video) == 0:
            raise WanstreamError(
                "Input cannot be None for PassthroughPipeline: send pictures, from a camera or a file."
            )
        yield video, Meta(last=True)
