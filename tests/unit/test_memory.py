"""How a load goes into memory: everything at once, the text encoder in turns, or not at all."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from export.onnx.jobs import Request
from export.onnx.outline import outline
from export.onnx.store import EngineStore
from gateway.serving.interface import ServingError
from gateway.serving.load_plans import EngineLoad
from gateway.serving.memory import Memory
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import EngineManifest
from streaming.memory.fit import Fit, fit
from streaming.memory.plan import (
    GPU,
    IN_PROCESS,
    MODEL_PROCESSES,
    DoesNotFitError,
    Placement,
    read_manifests,
)
from streaming.specs import LONGLIVE
from tests.engines import SIZE, load_plan

GB = 1_000_000_000
assert LONGLIVE.loop is not None
LOOP = LONGLIVE.loop


@pytest.fixture(scope="module")
def engines(exported_engines: tuple[Path, EngineSet]) -> EngineSet:
    return exported_engines[1]


@pytest.fixture(scope="module")
def store(exported_engines: tuple[Path, EngineSet]) -> EngineStore:
    return EngineStore(exported_engines[0] / "engines")


@pytest.fixture(scope="module")
def manifests(engines: EngineSet, store: EngineStore) -> Mapping[str, EngineManifest]:
    """Manifests of the small engines, but weights of 11.4 GB in the text encoder, 2.8 in the DiT."""
    found = read_manifests(store.models, engines.engines(SIZE))
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

    assert not chosen.make_room
    assert engines.text_encoder in chosen.plan.weights
    assert chosen.sessions == 64  # the caches of the small model are nothing


def test_a_smaller_card_serves_with_the_text_encoder_in_turns(
    engines: EngineSet, manifests: Mapping[str, EngineManifest]
) -> None:
    chosen = fit_in(14 * GB, engines, manifests)

    assert chosen.make_room == tuple(n for n in engines.engines(SIZE) if n != engines.text_encoder)
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


@pytest.mark.parametrize(("placement", "sessions"), [(IN_PROCESS, 8), (MODEL_PROCESSES, 8), (GPU, None)])
def test_memory_that_nobody_can_tell_refuses_nothing(
    placement: Placement,
    sessions: int | None,
    engines: EngineSet,
    manifests: Mapping[str, EngineManifest],
) -> None:
    chosen = fit_in(None, engines, manifests, placement)

    assert (chosen.make_room, chosen.sessions) == ((), sessions)


def test_the_released_weights_fit_in_24_gb_with_the_text_encoder_in_turns(
    tmp_path: Path,
) -> None:
    """By their outline: manifests of the real sizes, without any file."""
    size = (LONGLIVE.height, LONGLIVE.width)
    real = outline(Request(LONGLIVE.id, tmp_path, (size,), precision="fp16"))

    small, large = (fit(real.engines, real.manifests, LOOP, size, GPU, gb * GB) for gb in (24, 40))

    assert (bool(small.make_room), small.sessions) == (True, 1)
    assert not large.make_room
    with pytest.raises(DoesNotFitError, match=r"16\.0 GB are free"):
        fit(real.engines, real.manifests, LOOP, size, GPU, 16 * GB)


async def test_a_limit_counts_even_if_more_is_free(engines: EngineSet, store: EngineStore) -> None:
    async def used_and_total() -> tuple[int, int]:
        return 4 * GB, 24 * GB

    manifests = read_manifests(store.models, engines.engines(SIZE))
    plan = load_plan(store, engines, backend="triton", gpus=(0,))

    free = await Memory(used_and_total, on_cpu=False).fit(EngineLoad(plan, engines, manifests, LOOP))
    limited = Memory(used_and_total, on_cpu=False, limit_bytes=5_000_000)

    assert free.free == 20 * GB
    with pytest.raises(ServingError, match=r"5\.0 MB are free"):
        await limited.fit(EngineLoad(plan, engines, manifests, LOOP))


@pytest.mark.parametrize("on_cpu", [True, False])
async def test_what_onnx_runtime_takes_is_no_memory_of_a_gpu(
    on_cpu: bool, engines: EngineSet, store: EngineStore
) -> None:
    """On another machine, an external Triton's, nobody knows what is free."""

    async def no_gpu_memory() -> tuple[int, int]:
        return 24 * GB, 24 * GB

    manifests = read_manifests(store.models, engines.engines(SIZE))

    fits = await Memory(no_gpu_memory, on_cpu=on_cpu).fit(
        EngineLoad(load_plan(store, engines), engines, manifests, LOOP)
    )

    assert fits.plan.placement is IN_PROCESS
    assert (fits.free is not None) == on_cpu


async def test_a_load_is_judged_by_what_will_be_free_when_the_present_one_is_gone(
    engines: EngineSet, store: EngineStore
) -> None:
    """The pipeline takes 1.1 GB of 1.5; so there is room for it in place of itself, not beside itself."""
    used = [22_500_000_000]

    async def used_and_total() -> tuple[int, int]:
        return used[0], 24 * GB

    memory = Memory(used_and_total, on_cpu=False)
    manifests = read_manifests(store.models, engines.engines(SIZE))
    load = EngineLoad(load_plan(store, engines, backend="triton", gpus=(0,)), engines, manifests, LOOP)
    plan = (await memory.fit(load)).plan
    used[0] += plan.total()

    await memory.check(load, in_use=True)
    with pytest.raises(ServingError, match="are free"):
        await memory.check(load, in_use=False)
    with pytest.raises(ServingError, match="are free"):
        await Memory(used_and_total, on_cpu=False).check(load, in_use=True)
