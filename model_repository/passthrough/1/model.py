"""Triton model `passthrough`."""

from streaming.passthrough import Passthrough
from streaming.triton_model import StreamingModel


class TritonPythonModel(StreamingModel):
    pipeline = Passthrough
