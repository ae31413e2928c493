"""The Triton configuration of a pipeline's model, made anew for each load; free of torch and protobuf.

All pipelines have the same interface, and a load sends the whole configuration, because Triton does not merge
it with the model's `config.pbtxt`. That file is all but empty: without one Triton complains at each load, and
loads what is loaded already.
"""

from collections.abc import Mapping
from typing import Any, Final

from streaming.triton.images import IMAGES_INPUT
from streaming.triton.protocol import FRAMES_OUTPUT, IDLE_LIMIT_S, META_OUTPUT, PARAMS_INPUT, VIDEO_INPUT

MODEL_SOURCE: Final = "1/model.py"  # in the directory of a pipeline's model

# More than there are sessions: a sequence that nobody ended keeps its slot until it has been idle for long.
_SLOTS: Final = 64
_TEXT: Final = {"data_type": "TYPE_STRING", "dims": [1]}
_PICTURES: Final = {"data_type": "TYPE_UINT8", "dims": [-1, -1, -1, 3]}


def pipeline_config(name: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """The complete configuration of pipeline `name`, as the JSON of Triton's ModelConfig.

    parameters: of this load, for `LoadContext.parameters`.
    """
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "model_transaction_policy": {"decoupled": True},
        "input": [
            {"name": PARAMS_INPUT, **_TEXT},
            {"name": VIDEO_INPUT, **_PICTURES, "optional": True},
            {"name": IMAGES_INPUT, "data_type": "TYPE_UINT8", "dims": [-1], "optional": True},
        ],
        "output": [{"name": FRAMES_OUTPUT, **_PICTURES}, {"name": META_OUTPUT, **_TEXT}],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "sequence_batching": {
            "max_sequence_idle_microseconds": IDLE_LIMIT_S * 1_000_000,
            # Sequences share the one instance and take turns; with "direct" a second one would wait for ever.
            "oldest": {"max_candidate_sequences": _SLOTS},
            "control_input": [
                {"name": "START", "control": [_flag("CONTROL_SEQUENCE_START")]},
                {"name": "END", "control": [_flag("CONTROL_SEQUENCE_END")]},
                {
                    "name": "CORRID",
                    "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}],
                },
            ],
        },
    }


def _flag(kind: str) -> dict[str, Any]:
    return {"kind": kind, "int32_false_true": [0, 1]}
