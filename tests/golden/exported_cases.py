"""Which recorded cases run on exported files, and how."""

from collections.abc import Callable

from tests.golden.case import GoldenCase, discover, golden_directory
from tests.golden.place import Place
from tests.golden.replays import lora, text, transformer, vace, vae

REPLAYS: dict[str, Callable[[GoldenCase, Place], None]] = {
    "wan.dit": transformer.replay_bidirectional,
    "wan.causal": transformer.replay_causal,
    "wan.t5_encoder": text.t5_encoder,
    "lora.formats": lora.replay_formats,
    "lora.builtin_adapter": lora.replay_builtin,
    "lora.stacking": lora.replay_stacking,
    "wan.vae_oneshot": vae.oneshot,
    "wan.vae_decode_first": vae.decode_first,
    "wan.vae_decode_stream": vae.decode_stream,
    "wan.vae_encode_stream": vae.encode_stream,
    "vace.causal": vace.replay_causal,
    "vace.context_wanvae": vace.context_wanvae,
    "vace.hints_bidirectional": vace.replay_bidirectional,
    "wan.tae_stream": vae.tae_stream,
}


def exported_cases() -> list[GoldenCase]:
    """Those of the golden directory."""
    return [case for case in discover(golden_directory()) if case.kind in REPLAYS]
