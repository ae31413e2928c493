"""What Triton is told about the pipelines' models."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from gateway.embedded.server import model_repository
from streaming.specs import SPECS
from streaming.triton.protocol import CHUNK_LIMIT_S, IDLE_LIMIT_S


def config(name: str) -> ModelConfig:
    return text_format.Parse((model_repository() / name / "config.pbtxt").read_text(), ModelConfig())


def test_every_pipeline_has_a_model() -> None:
    assert {path.parent.name for path in model_repository().glob("*/config.pbtxt")} == set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_models_differ_in_their_name_only(name: str) -> None:
    expected = config("passthrough")
    expected.name = name

    assert config(name) == expected


def test_a_sequence_outlives_the_longest_chunk() -> None:
    idle_s = config("passthrough").sequence_batching.max_sequence_idle_microseconds / 1e6

    assert idle_s == IDLE_LIMIT_S
    assert idle_s > CHUNK_LIMIT_S
