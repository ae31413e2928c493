"""What an exported engine's directory holds beside its files, so that Triton can serve it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from streaming.engines.engine_config import engine_config
from streaming.engines.manifest import CONFIG, EngineManifest

MODEL_SOURCE: Final = '''"""ONNX Runtime on model.onnx beside this file."""

from streaming.triton.ort_model import OrtModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_onnxruntime_model(directory: Path, version: Path, manifest: EngineManifest) -> None:
    """Write what Triton needs beside an engine's files to run it on the CPU.

    directory: of the Triton model. version: its version directory, which holds the engine.
    """
    text = config_text(engine_config(manifest, "onnxruntime"))
    (directory / CONFIG).write_text(text, encoding="utf-8")
    (version / "model.py").write_text(MODEL_SOURCE, encoding="utf-8")


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as `config.pbtxt` has it."""
    return str(text_format.MessageToString(json_format.ParseDict(dict(config), ModelConfig())))
