"""The reference's numbers once more, from exported files in ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.golden.case import GoldenCase, discover, golden_directory
from tests.golden.place import Exported
from tests.golden.replays import text, transformer, vae

REPLAYS: dict[str, Callable[[GoldenCase, Exported], None]] = {
    "wan.dit": transformer.replay_bidirectional,
    "wan.causal": transformer.replay_causal,
    "wan.t5_encoder": text.t5_encoder,
    "wan.vae_oneshot": vae.oneshot,
    "wan.vae_decode_first": vae.decode_first,
    "wan.vae_decode_stream": vae.decode_stream,
    "wan.vae_encode_stream": vae.encode_stream,
    "wan.tae_stream": vae.tae_stream,
}
# Tracing takes most of the time; these run the graphs of the stream cases, on other inputs.
SAME_GRAPHS = {"wan/vae_oneshot", "wan/vae_decode_first"}
CASES = discover(golden_directory())
EXPORTED = [case for case in CASES if case.kind in REPLAYS and str(case) not in SAME_GRAPHS]


@pytest.mark.parametrize("exported_case", EXPORTED, ids=str)
def test_an_exported_file_reproduces_the_reference(exported_case: GoldenCase, tmp_path: Path) -> None:
    with torch.inference_mode():
        REPLAYS[exported_case.kind](exported_case, Exported(tmp_path))

    assert exported_case.compared >= set(exported_case.expected())
