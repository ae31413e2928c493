"""Which recorded cases run on exported files, and how."""

from collections.abc import Callable

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


def exported_cases() -> list[GoldenCase]:
    """Those of the golden directory."""
    cases = discover(golden_directory())
    return [case for case in cases if case.kind in REPLAYS and str(case) not in SAME_GRAPHS]
