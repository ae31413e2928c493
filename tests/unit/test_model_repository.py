"""What Triton is told about the pipelines' models."""

import pytest
from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from gateway.embedded.server import model_repository
from streaming.specs import SPECS
from streaming.triton.model_config import MODEL_SOURCE, pipeline_config
from streaming.triton.protocol import CHUNK_LIMIT_S, IDLE_LIMIT_S


def test_every_pipeline_has_a_model() -> None:
    sources = model_repository().glob(f"*/{MODEL_SOURCE}")

    assert {source.parent.parent.name for source in sources} == set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_the_configuration_is_one_of_triton(name: str) -> None:
    sent = pipeline_config(name, {"plan": "{}"})

    config = json_format.ParseDict(sent, ModelConfig())  # refuses unknown keys
    assert (config.name, config.backend) == (name, "python")
    assert config.model_transaction_policy.decoupled
    assert config.parameters["plan"].string_value == "{}"


def test_a_sequence_outlives_the_longest_chunk() -> None:
    idle_s = pipeline_config("passthrough", {})["sequence_batching"]["max_sequence_idle_microseconds"] / 1e6

    assert idle_s == IDLE_LIMIT_S
    assert idle_s > CHUNK_LIMIT_S
