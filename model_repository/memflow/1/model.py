"""Triton model `memflow`."""

from streaming.engines.served import served_pipeline
from streaming.specs import SPECS
from streaming.triton.triton_model import StreamingModel


class TritonPythonModel(StreamingModel):
    pipeline = staticmethod(served_pipeline(SPECS["memflow"]))
