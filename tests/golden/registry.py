"""Kind of a golden case -> the function that replays it, and what cannot be replayed yet."""

from collections.abc import Callable

from tests.golden.case import GoldenCase
from tests.golden.replays import (
    checkpoints,
    longlive,
    lora,
    memflow,
    schedule,
    stream,
    text,
    transformer,
    vace,
    vae,
)

Replay = Callable[[GoldenCase], None]

REPLAYS: dict[str, Replay] = {
    **checkpoints.REPLAYS,
    **longlive.REPLAYS,
    **lora.REPLAYS,
    **memflow.REPLAYS,
    **schedule.REPLAYS,
    **stream.REPLAYS,
    **text.REPLAYS,
    **transformer.REPLAYS,
    **vace.REPLAYS,
    **vae.REPLAYS,
}

# Known kinds, or area/kind of some cases, whose subject is not built yet. Their cases are listed by name at
# the end of every run.
NOT_YET: frozenset[str] = frozenset()


def must_wait(case: GoldenCase) -> bool:
    """Whether the subject of a case is not built yet."""
    return case.kind in NOT_YET or f"{case.meta.get('area')}/{case.kind}" in NOT_YET


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
