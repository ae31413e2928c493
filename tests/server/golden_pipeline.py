"""A pipeline that replays golden cases on the engines of backend `pytorch`, inside Triton.

A chunk is a case, its parameter `case`; a difference from the reference is the error of the chunk.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.graphs.signature import Signature
from export.pytorch.engine import ModuleEngine
from streaming.engines.engine import Engine
from streaming.errors import WanstreamError
from streaming.network.inputs import KEY_BIAS
from streaming.triton.protocol import Meta
from streaming.triton.sessions import Images, LoadContext, Stream
from tests.golden.case import GoldenCase, discover, golden_directory
from tests.golden.exported_cases import REPLAYS
from tests.golden.place import Call
from tests.golden.replays.stream import replay_stream, torch_modules
from tests.golden.replays.stream_cases import StreamCase

STREAM = "stream"


class GoldenPipeline:
    """All cases; the load has no parameters."""

    def __init__(self, context: LoadContext) -> None:
        self._cases = {str(case): case for case in discover(golden_directory())}

    def open_stream(self) -> Stream:
        return GoldenStream(self._cases)

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to release."""


class GoldenStream:
    """Replays whatever is asked for; picture 0 is as wide as the tensors that were compared."""

    def __init__(self, cases: Mapping[str, GoldenCase]) -> None:
        self._cases = cases

    def next_chunk(
        self, parameters: Mapping[str, Any], video: Images | None, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Images, Meta]]:
        case = self._cases[parameters["case"]]
        try:
            replay(case)
        except AssertionError as error:
            raise WanstreamError(f"{case}: {error}") from error
        left_out = set(case.expected()) - case.compared
        if left_out:
            raise WanstreamError(f"{case}: not compared: {sorted(left_out)}")
        yield np.zeros((1, 1, len(case.compared), 3), np.uint8), Meta(last=True)


def replay(case: GoldenCase) -> None:
    """Raises AssertionError for a difference."""
    if case.kind == STREAM:
        with torch.no_grad():
            replay_stream(case, stream_engines, spare_bias=True)
    else:
        with torch.inference_mode():
            REPLAYS[case.kind](case, place)


def place(module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> Call:
    """A graph as the backend runs it."""
    engine = ModuleEngine(module, signature)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(engine.inputs, tensors, strict=True))
        return tuple(engine.run(inputs, engine.outputs).values())

    return call


def stream_engines(stream: StreamCase) -> tuple[Engine, Engine]:
    """Transformer and text side of a case as the backend runs them."""
    transformer, text_kv = torch_modules(stream)
    return (
        ModuleEngine(transformer, transformer.signature(0), optional=(KEY_BIAS,)),
        ModuleEngine(text_kv, text_kv.signature()),
    )
