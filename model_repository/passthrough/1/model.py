"""Triton model `passthrough`."""

from streaming.triton.passthrough import Passthrough
from streaming.triton.triton_model import StreamingModel


class TritonPythonModel(StreamingModel):
    pipeline = Passthrough
    instant = True
