"""Kind of a golden case -> the function that replays it. A kind is in exactly one of the two tables."""

from collections.abc import Callable

from tests.golden.case import GoldenCase
from tests.golden.replays import checkpoints, schedule, text, transformer, vae

Replay = Callable[[GoldenCase], None]

REPLAYS: dict[str, Replay] = {
    **checkpoints.REPLAYS,
    **schedule.REPLAYS,
    **text.REPLAYS,
    **transformer.REPLAYS,
    **vae.REPLAYS,
}

# Known kinds whose subject is not built yet. Their cases are listed by name at the end of every run.
NOT_YET: frozenset[str] = frozenset(
    {
        "longlive.adapter_merge",
        "longlive.blend_spatial",
        "longlive.blend_temporal",
        "longlive.noise_controller",
        "longlive.video_pre_post",
        "lora.builtin_adapter",
        "lora.formats",
        "lora.malformed",
        "lora.stacking",
        "memflow.bank_compression",
        "memflow.sma_routing",
        "stream",
        "vace.causal",
        "vace.chunk_preprocess",
        "vace.context_wanvae",
        "vace.hints_bidirectional",
        "vace.mask_packing",
        "vace.ref_images",
    }
)


def replay(case: GoldenCase) -> None:
    """Replay one case and make sure that no expected tensor was left out.

    Raises AssertionError for a difference, an expected tensor that was not compared, or an unknown kind.
    """
    assert case.kind in REPLAYS, (
        f"{case}: no replay for kind '{case.kind}'. Write one in tests/golden/replays and add it to REPLAYS."
    )
    REPLAYS[case.kind](case)
    left_out = sorted(set(case.expected()) - case.compared)
    assert not left_out, f"{case}: the replay of kind '{case.kind}' did not compare {', '.join(left_out)}"
