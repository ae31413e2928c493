"""How a load goes into memory: everything at once, the text encoder in turns, or not at all."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from export.jobs import Request
from export.outline import outline
from export.store import EngineStore
from gateway.memory import Fit, Memory, fit
from gateway.serving import ServingError
from streaming.engine_set import EngineSet
from streaming.manifest import EngineManifest
from streaming.memory_plan import CPU, GPU, DoesNotFitError, Placement, read_manifests
from streaming.specs import LONGLIVE
from tests.engines import SIZE

GB = 1_000_000_000
assert LONGLIVE.loop is not None
LOOP = LONGLIVE.loop


@pytest.fixture(scope="module")
def engines(exported_engines: tuple[Path, EngineSet]) -> EngineSet:
    return exported_engines[1]


@pytest.fixture(scope="module")
def models(exported_engines: tuple[Path, EngineSet]) -> Path:
    return EngineStore(exported_engines[0] / "engines").models


@pytest.fixture(scope="module")
def manifests(engines: EngineSet, models: Path) -> Mapping[str, EngineManifest]:
    """Manifests of the small engines, but weights of 11.4 GB in the text encoder, 2.8 in the DiT."""
    found = read_manifests(models, engines.engines(SIZE))
    for name, size in ((engines.text_encoder, int(11.4 * GB)), (engines.transformer, int(2.8 * GB))):
        graph = found[name].files[0].model_copy(update={"bytes": size})
        found[name] = found[name].model_copy(update={"files": (graph,)})
    return found


def fit_in(
    free: int | None,
    engines: EngineSet,
    manifests: Mapping[str, EngineManifest],
    placement: Placement = GPU,
) -> Fit:
    return fit(engines, manifests, LOOP, SIZE, placement, free)


def test_a_large_card_keeps_the_text_encoder(
    engines: EngineSet, manifests: Mapping[str, EngineManifest]
) -> None:
    chosen = fit_in(40 * GB, engines, manifests)

    assert not chosen.text_encoder_on_demand
    assert engines.text_encoder in chosen.plan.weights
    assert chosen.sessions == 64  # the caches of the small model are nothing


def test_a_smaller_card_serves_with_the_text_encoder_in_turns(
    engines: EngineSet, manifests: Mapping[str, EngineManifest]
) -> None:
    chosen = fit_in(14 * GB, engines, manifests)

    assert chosen.text_encoder_on_demand
    assert engines.text_encoder not in chosen.plan.weights
    assert "takes turns" in chosen.summary
    assert "14.0 GB are free" in chosen.summary


def test_sessions_keep_their_caches_while_the_text_encoder_is_in(
    engines: EngineSet, manifests: Mapping[str, EngineManifest]
) -> None:
    each = fit_in(40 * GB, engines, manifests).plan.per_session
    smallest = next(
        free for free in range(12 * GB, 13 * GB, 100_000) if not refused(free, engines, manifests)
    )

    assert fit_in(smallest, engines, manifests).sessions == 1
    assert fit_in(smallest + 3 * each, engines, manifests).sessions in (3, 4)


def refused(free: int, engines: EngineSet, manifests: Mapping[str, EngineManifest]) -> bool:
    try:
        fit_in(free, engines, manifests)
    except DoesNotFitError:
        return True
    return False


def test_a_card_without_room_for_the_text_encoder_is_refused_with_the_numbers(
    engines: EngineSet, manifests: Mapping[str, EngineManifest]
) -> None:
    with pytest.raises(DoesNotFitError, match=r"for one session, 11\.0 GB are free: weights 14"):
        fit_in(11 * GB, engines, manifests)


@pytest.mark.parametrize(("placement", "sessions"), [(CPU, 8), (GPU, None)])
def test_memory_that_nobody_can_tell_refuses_nothing(
    placement: Placement,
    sessions: int | None,
    engines: EngineSet,
    manifests: Mapping[str, EngineManifest],
) -> None:
    chosen = fit_in(None, engines, manifests, placement)

    assert (chosen.text_encoder_on_demand, chosen.sessions) == (False, sessions)


def test_the_released_weights_fit_in_24_gb_with_the_text_encoder_in_turns(
    tmp_path: Path,
) -> None:
    """By their outline: manifests of the real sizes, without any file."""
    size = (LONGLIVE.height, LONGLIVE.width)
    real = outline(Request(LONGLIVE.id, tmp_path, (size,), precision="fp16"))

    small, large = (fit(real.engines, real.manifests, LOOP, size, GPU, gb * GB) for gb in (24, 40))

    assert (small.text_encoder_on_demand, small.sessions) == (True, 1)
    assert not large.text_encoder_on_demand
    with pytest.raises(DoesNotFitError, match=r"16\.0 GB are free"):
        fit(real.engines, real.manifests, LOOP, size, GPU, 16 * GB)


async def test_a_limit_counts_even_if_more_is_free(engines: EngineSet, models: Path) -> None:
    async def used_and_total() -> tuple[int, int]:
        return 4 * GB, 24 * GB

    free = await Memory(used_and_total, on_cpu=False).fit(
        engines, models, LONGLIVE, {"height": SIZE[0], "width": SIZE[1]}
    )
    limited = Memory(used_and_total, on_cpu=False, limit_bytes=5_000_000)

    assert free.free == 20 * GB
    with pytest.raises(ServingError, match=r"5\.0 MB are free"):
        await limited.fit(engines, models, LONGLIVE, {"height": SIZE[0], "width": SIZE[1]})
