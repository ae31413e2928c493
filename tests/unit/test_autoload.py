"""A pipeline that is kept loaded, on a serving side that fails and is lost."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.pipelines.autoload import Autoload
from gateway.pipelines.load_service import LoadService
from gateway.pipelines.state import Pipelines, State
from tests.unit.test_pipelines import SlowServing, request

PASSTHROUGH = "passthrough"


@pytest.fixture
def serving() -> SlowServing:
    serving = SlowServing()
    serving.release.set()
    return serving


@pytest.fixture
async def pipelines(serving: SlowServing) -> AsyncIterator[Pipelines]:
    """With passthrough kept loaded."""
    machine = Pipelines(serving, load_timeout_s=5)
    autoload = Autoload(machine, LoadService(machine, []), PASSTHROUGH, keep=True)
    await autoload.start()
    yield machine
    await autoload.close()
    await machine.close()


async def reached(pipelines: Pipelines, state: State) -> None:
    await asyncio.wait_for(pipelines.wait_for(state), 30)


async def test_a_failed_first_load_is_tried_again(serving: SlowServing, pipelines: Pipelines) -> None:
    serving.failure = "boom"
    await reached(pipelines, State.ERROR)

    serving.failure = None

    await reached(pipelines, State.LOADED)
    assert pipelines.status()["pipeline_id"] == PASSTHROUGH


async def test_what_is_lost_is_loaded_again_as_it_was(serving: SlowServing, pipelines: Pipelines) -> None:
    pipelines.request_load(request("longlive", height=320))
    await reached(pipelines, State.LOADED)

    pipelines.lost("Triton died")
    lost = pipelines.state
    await reached(pipelines, State.LOADED)

    assert lost is State.ERROR
    assert pipelines.status()["pipeline_id"] == "longlive"
    assert pipelines.status()["load_params"] == {"height": 320}


async def test_a_failed_load_of_something_else_brings_the_pipeline_back(
    serving: SlowServing, pipelines: Pipelines
) -> None:
    await reached(pipelines, State.LOADED)
    serving.failure = "boom"
    pipelines.request_load(request("longlive"))
    await reached(pipelines, State.ERROR)

    serving.failure = None

    await reached(pipelines, State.LOADED)
    assert pipelines.status()["pipeline_id"] == PASSTHROUGH
