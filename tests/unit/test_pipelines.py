"""The state machine of the loaded pipeline, on a serving side that is slow or fails on demand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest

from gateway.pipelines.load_params import LoadRequest
from gateway.pipelines.state import NothingLoaded, Pipelines, State
from gateway.serving.interface import (
    Availability,
    Chunk,
    Images,
    ServedMemory,
    ServedPlan,
    ServingError,
    StageCallback,
)
from gateway.waiting import to_the_end
from streaming.specs import SPECS, PipelineSpec


class IdleSession:
    """A serving session that only counts how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def generate(self, parameters: Mapping[str, Any], video: Images | None) -> AsyncIterator[Chunk]:
        raise ServingError("not used here")
        yield  # pragma: no cover

    async def preprocess(self, name: str, video: Images) -> Images:
        return video

    def give_up(self) -> None: ...

    async def close(self) -> None:
        self.closed += 1


class SlowServing:
    """Loads when `release` is set; fails with the text in `failure`. Records what it was told to do.

    A cancelled load, and an unload, take `leaving_steps` turns of the event loop to let go.
    """

    url = "nowhere"

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.failure: str | None = None
        self.prepared = asyncio.Event()
        self.prepared.set()
        self.unprepared: str | None = None  # why a preparation fails
        self.calls: list[str] = []
        self.cancelled: list[str] = []
        self.leaving_steps = 0
        self.models: list[str] = []  # that are there now
        self.overlaps: list[str] = []  # loads and unloads that found others at work

    async def start(self, on_lost: Callable[[str], None]) -> None: ...

    problem: str | None = None

    async def is_ready(self) -> bool:
        return True

    async def verify(self) -> None: ...

    def hurry(self) -> None: ...

    def availability(self, spec: PipelineSpec, backend: str = "auto") -> Availability:
        return Availability(True)

    on_gpu = True
    load_plan: ServedPlan | None = None

    async def check(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None: ...

    async def room(self, spec: PipelineSpec) -> None: ...

    async def check_room(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None: ...

    async def prepare(
        self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback
    ) -> None:
        on_stage(f"Preparing {spec.name}...")
        await self.prepared.wait()
        if self.unprepared is not None:
            raise ServingError(self.unprepared)

    async def load(self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback) -> None:
        self.calls.append(f"load {spec.id}")
        on_stage(f"Loading {spec.name}...")
        self.overlaps += [f"load {spec.id} beside {model}" for model in self.models]
        self.models.append(spec.id)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(spec.id)
            await to_the_end(self._let_go(spec.id))
            raise
        if self.failure is not None:
            self.models.clear()
            raise ServingError(self.failure)

    async def adapt(self, loras: Sequence[Mapping[str, Any]]) -> None:
        await self.release.wait()
        if self.failure is not None:
            raise ServingError(self.failure)
        self.calls.append(f"adapt {[lora['path'] for lora in loras]}")

    async def unload(self) -> None:
        self.calls.append("unload")
        for model in list(self.models):
            await self._let_go(model)

    async def _let_go(self, model: str) -> None:
        for _ in range(self.leaving_steps):
            await asyncio.sleep(0)
        self.models.remove(model)

    def open_session(self) -> IdleSession:
        return IdleSession()

    async def gpu_memory_bytes(self) -> tuple[int, int] | None:
        return None

    async def close(self) -> None: ...


def request(pipeline_id: str, **params: Any) -> LoadRequest:
    return LoadRequest(SPECS[pipeline_id], params, [], frozenset())


async def settled(pipelines: Pipelines) -> None:
    with contextlib.suppress(NothingLoaded):
        await pipelines.wait_loaded()


@pytest.fixture
def serving() -> SlowServing:
    return SlowServing()


@pytest.fixture
async def pipelines(serving: SlowServing) -> AsyncIterator[Pipelines]:
    machine = Pipelines(serving, load_timeout_s=5)
    yield machine
    serving.release.set()
    await machine.close()


async def loaded_with(pipelines: Pipelines, serving: SlowServing, wanted: LoadRequest) -> None:
    serving.release.set()
    pipelines.request_load(wanted)
    await settled(pipelines)


async def test_the_state_is_loading_before_the_request_is_answered(pipelines: Pipelines) -> None:
    state = pipelines.request_load(request("passthrough"))

    status = pipelines.status()

    assert state is State.LOADING
    assert status["status"] == "loading"
    assert status["loading_pipeline_id"] == "passthrough"
    assert status["pipeline_id"] is None


async def test_a_finished_load_shows_its_parameters(pipelines: Pipelines, serving: SlowServing) -> None:
    await loaded_with(pipelines, serving, request("passthrough", height=512, width=512))

    status = pipelines.status()

    assert status["status"] == "loaded"
    assert status["pipeline_ids"] == ["passthrough"]
    assert status["load_params"] == {"height": 512, "width": 512}


async def test_the_load_plan_is_shown_only_while_its_pipeline_is_loaded(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    serving.load_plan = plan = ServedPlan("a_set", [], [], 8, ServedMemory("memory", 2, 1, {}))
    pipelines.request_load(request("longlive"))
    loading = pipelines.status()["load_plan"]
    await loaded_with(pipelines, serving, request("longlive"))
    loaded = pipelines.status()["load_plan"]

    await pipelines.unload()

    assert (loading, loaded, pipelines.status()["load_plan"]) == (None, plan, None)


async def test_an_equal_request_does_nothing(pipelines: Pipelines, serving: SlowServing) -> None:
    await loaded_with(pipelines, serving, request("passthrough", height=512))

    state = pipelines.request_load(request("passthrough", height=512))

    assert state is State.LOADED
    assert serving.calls == ["load passthrough"]


async def test_other_parameters_unload_first(pipelines: Pipelines, serving: SlowServing) -> None:
    await loaded_with(pipelines, serving, request("longlive", height=320))

    pipelines.request_load(request("longlive", height=512))
    await settled(pipelines)

    assert serving.calls == ["load longlive", "unload", "load longlive"]
    assert pipelines.status()["load_params"] == {"height": 512}


async def test_what_is_loaded_stays_until_the_next_load_is_prepared(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    await loaded_with(pipelines, serving, request("longlive"))
    running = pipelines.loaded
    assert running is not None
    serving.prepared.clear()
    pipelines.request_load(request("memflow"))
    await asyncio.sleep(0)
    assert (pipelines.state, running.retired.is_set()) == (State.LOADING, False)

    serving.unprepared = "the disk is full"
    serving.prepared.set()
    await settled(pipelines)

    assert (pipelines.loaded, serving.calls) == (running, ["load longlive"])
    assert pipelines.status()["error"] == "Failed to load pipeline memflow: the disk is full"
    serving.unprepared = None
    await loaded_with(pipelines, serving, request("memflow"))
    assert (pipelines.status()["pipeline_id"], pipelines.status()["error"]) == ("memflow", None)


async def test_a_preparation_that_is_given_up_leaves_what_is_loaded(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    await loaded_with(pipelines, serving, request("longlive"))
    running = pipelines.loaded
    serving.prepared.clear()
    pipelines.request_load(request("memflow"))
    await asyncio.sleep(0)

    pipelines.request_load(request("longlive"))
    await settled(pipelines)

    assert (pipelines.loaded, serving.calls) == (running, ["load longlive"])


async def test_the_newest_request_wins(pipelines: Pipelines, serving: SlowServing) -> None:
    pipelines.request_load(request("longlive"))
    await asyncio.sleep(0.01)

    pipelines.request_load(request("memflow"))
    pipelines.request_load(request("passthrough"))
    serving.release.set()
    await settled(pipelines)

    assert pipelines.status()["pipeline_id"] == "passthrough"
    assert serving.cancelled == ["longlive"]
    assert "load memflow" not in serving.calls


async def test_a_failure_stays_visible_until_the_next_load(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    serving.failure = "boom"
    await loaded_with(pipelines, serving, request("longlive"))

    errors = [pipelines.status()["error"] for _ in range(3)]
    serving.failure = None
    await loaded_with(pipelines, serving, request("longlive"))

    assert errors == ["Failed to load pipeline longlive: boom"] * 3
    assert pipelines.status()["error"] is None


async def test_a_refused_request_is_shown_only_while_nothing_is_loaded(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    pipelines.reject("Unknown pipeline: nope")
    before = pipelines.status()["status"]
    await loaded_with(pipelines, serving, request("passthrough"))

    pipelines.reject("Unknown pipeline: nope")

    assert before == "error"
    assert pipelines.status()["status"] == "loaded"


async def test_unloading_cancels_a_load(pipelines: Pipelines, serving: SlowServing) -> None:
    pipelines.request_load(request("longlive"))
    await asyncio.sleep(0.01)

    await pipelines.unload()
    await settled(pipelines)

    assert serving.cancelled == ["longlive"]
    assert pipelines.status()["status"] == "not_loaded"


async def test_unloading_waits_for_sessions_to_let_go(pipelines: Pipelines, serving: SlowServing) -> None:
    await loaded_with(pipelines, serving, request("passthrough"))
    loaded = await pipelines.wait_loaded()
    order: list[str] = []

    async def viewer() -> None:
        async with pipelines.open_session(loaded):
            await loaded.retired.wait()
            await asyncio.sleep(0.01)
            order.append("session closed")

    watching = asyncio.create_task(viewer())
    await asyncio.sleep(0)
    await pipelines.unload()
    order.append("unloaded")
    await watching

    assert order == ["session closed", "unloaded"]


def lora(path: str) -> dict[str, Any]:
    return {"path": path, "scale": 1.0, "merge_mode": "runtime_peft"}


async def test_files_beside_the_weights_change_without_a_load(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    await loaded_with(pipelines, serving, request("longlive", loras=[lora("a")]))
    before = pipelines.loaded
    pipelines.note_lora_scales([{"path": "a", "scale": 0.5}])

    after = await pipelines.adapt(lambda loaded: [*loaded.params["loras"], lora("b")])
    both = after.lora_adapters() or []
    await pipelines.adapt(lambda loaded: [lora("b")])
    await pipelines.adapt(lambda loaded: [*loaded.params["loras"], lora("a")])
    again = after.lora_adapters() or []

    assert after is before is pipelines.loaded
    assert [(a["path"], a["scale"]) for a in both] == [("a", 0.5), ("b", 1.0)]
    assert [(a["path"], a["scale"]) for a in again] == [("b", 1.0), ("a", 1.0)]
    assert serving.calls == ["load longlive", "adapt ['a', 'b']", "adapt ['b']", "adapt ['b', 'a']"]


async def test_files_that_are_refused_change_nothing(pipelines: Pipelines, serving: SlowServing) -> None:
    await loaded_with(pipelines, serving, request("longlive", loras=[lora("a")]))
    serving.failure = "LoRA 'b' (rank_budget): too much"

    with pytest.raises(ServingError, match="rank_budget"):
        await pipelines.adapt(lambda loaded: [lora("a"), lora("b")])

    assert pipelines.status()["load_params"] == {"loras": [lora("a")]}
    assert pipelines.state is State.LOADED


async def test_no_files_are_changed_while_something_else_is_on_its_way(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    with pytest.raises(NothingLoaded):
        await pipelines.adapt(lambda loaded: [])
    await loaded_with(pipelines, serving, request("longlive"))
    pipelines.request_load(request("memflow"))

    with pytest.raises(NothingLoaded):
        await pipelines.adapt(lambda loaded: [])


async def test_waiting_for_a_pipeline_that_failed_tells_why(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    pipelines.request_load(request("longlive"))
    waiting = asyncio.create_task(pipelines.wait_loaded())
    serving.failure = "boom"
    serving.release.set()

    with pytest.raises(NothingLoaded) as caught:
        await waiting

    assert caught.value.error == "Failed to load pipeline longlive: boom"


async def test_waiting_goes_on_across_a_replacement(pipelines: Pipelines, serving: SlowServing) -> None:
    pipelines.request_load(request("longlive"))
    waiting = asyncio.create_task(pipelines.wait_loaded())
    await asyncio.sleep(0.01)

    pipelines.request_load(request("memflow"))
    serving.release.set()

    assert (await waiting).spec.id == "memflow"


async def test_a_lost_pipeline_is_an_error_and_retires(pipelines: Pipelines, serving: SlowServing) -> None:
    await loaded_with(pipelines, serving, request("passthrough"))
    loaded = await pipelines.wait_loaded()

    pipelines.lost("Triton died")

    assert loaded.retired.is_set()
    assert pipelines.status()["status"] == "error"
    assert pipelines.status()["error"] == "Triton died"


async def test_a_load_that_takes_too_long_is_an_error(serving: SlowServing) -> None:
    pipelines = Pipelines(serving, load_timeout_s=0.05)

    pipelines.request_load(request("longlive"))
    await settled(pipelines)

    assert "not loaded within" in pipelines.status()["error"]
    await pipelines.close()


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("apart", [1, 5, 20, 100])
async def test_a_cancelled_load_has_ended_before_the_next_begins(
    pipelines: Pipelines, serving: SlowServing, apart: int
) -> None:
    """Three times in a row, at several moments of what the load before does to end."""
    serving.leaving_steps = 50
    wanted = ["longlive", "memflow", "streamdiffusionv2", "passthrough"]
    for pipeline_id in wanted:
        pipelines.request_load(request(pipeline_id))
        await ticks(apart)
    serving.release.set()
    await settled(pipelines)

    assert serving.overlaps == []
    assert serving.models == ["passthrough"]
    assert pipelines.status()["pipeline_id"] == "passthrough"


@pytest.mark.parametrize("apart", [1, 5, 20, 100])
async def test_cancellations_do_not_cut_an_unload_short(
    pipelines: Pipelines, serving: SlowServing, apart: int
) -> None:
    """Several newer wishes come while the loaded pipeline retires."""
    await loaded_with(pipelines, serving, request("longlive"))
    serving.leaving_steps = 200

    for pipeline_id in ("memflow", "streamdiffusionv2", "reward-forcing", "passthrough"):
        pipelines.request_load(request(pipeline_id))
        await ticks(apart)
    await settled(pipelines)

    assert serving.overlaps == []
    assert serving.models == ["passthrough"]


async def test_a_load_that_takes_too_long_has_ended_before_the_next_begins(serving: SlowServing) -> None:
    serving.leaving_steps = 50
    pipelines = Pipelines(serving, load_timeout_s=0.05)
    pipelines.request_load(request("longlive"))
    await settled(pipelines)
    error = pipelines.status()["error"]

    serving.release.set()
    pipelines.request_load(request("memflow"))
    await settled(pipelines)

    assert "not loaded within" in error
    assert serving.overlaps == []
    assert serving.models == ["memflow"]
    await pipelines.close()


async def test_a_load_that_is_done_when_it_is_cancelled_leaves_nothing(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    for apart in range(12):
        serving.release.clear()
        pipelines.request_load(request("longlive"))
        await ticks(10)
        serving.release.set()
        await ticks(apart)
        await pipelines.unload()
        await settled(pipelines)

        assert serving.models == []
        assert pipelines.status()["status"] == "not_loaded"


async def test_the_same_load_may_be_asked_for_while_it_is_being_cancelled(
    pipelines: Pipelines, serving: SlowServing
) -> None:
    serving.leaving_steps = 50
    pipelines.request_load(request("longlive"))
    await ticks(10)
    unloading = asyncio.create_task(pipelines.unload())
    await ticks(5)

    pipelines.request_load(request("longlive"))
    serving.release.set()
    await unloading
    await settled(pipelines)

    assert pipelines.status()["pipeline_id"] == "longlive"
    assert serving.overlaps == []


async def test_nothing_is_loaded_once_the_server_stops(serving: SlowServing) -> None:
    serving.leaving_steps = 50
    pipelines = Pipelines(serving, load_timeout_s=60)
    pipelines.request_load(request("longlive"))
    await ticks(5)

    closing = asyncio.create_task(pipelines.close())
    await ticks(5)
    pipelines.request_load(request("memflow"))
    await closing

    assert serving.models == []
    assert "load memflow" not in serving.calls
