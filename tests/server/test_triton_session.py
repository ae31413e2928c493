"""The gateway's sequence on a real Triton: nothing that a viewer does may lose it."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from export.pytorch.preprocessors import load_preprocessor
from gateway.embedded.server import EmbeddedTriton
from gateway.serving.interface import Chunk, ChunkFailed, ServingLost
from gateway.triton.session import TritonSession
from streaming.engines.load_plan import LoadPlan
from tests.server.scripted_pipeline import CHUNKS, LABEL
from tests.server.triton_fixtures import (
    SCRIPTED,
    ModelClient,
    model_processes,
    running_triton,
    write_test_models,
)
from tests.unit.test_depth import tiny, write_weights

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOR_EVER = {"delay_s": 60}
LOST = "begins afresh"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTriton]:
    async with running_triton(write_test_models(tmp_path_factory.mktemp("models"))) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def scripted(triton: EmbeddedTriton) -> AsyncIterator[ModelClient]:
    """The scripted pipeline, loaded without parameters."""
    async with ModelClient(triton, SCRIPTED) as client:
        await client.load()
        yield client


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger="gateway"):
        yield


@dataclass
class Viewer:
    """A session and what it was shown."""

    session: TritonSession
    made: list[Chunk] = field(default_factory=list)  # first part of each chunk
    given_up: int = 0

    async def chunk(self, **parameters: Any) -> bool:
        """Make a chunk to its end; False when it was given up."""
        parts = [part async for part in self.session.generate(parameters, None)]
        if parts[-1].meta.get("given_up"):
            assert [len(part.frames) for part in parts] == [0]
            self.given_up += 1
            return False
        self.made.append(parts[0])
        return True

    def numbers(self, channel: int) -> list[int]:
        return [int(part.frames[0, 0, 0, channel]) for part in self.made]


def viewer(client: ModelClient, **options: Any) -> Viewer:
    return Viewer(TritonSession(client.api, SCRIPTED, lambda text: None, **options))


async def give_up_after(seconds: float, session: TritonSession) -> None:
    await asyncio.sleep(seconds)
    session.give_up()


async def test_chunks_that_are_given_up_leave_no_trace(
    scripted: ModelClient, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, on the way, while they are being made; each is followed by one that is made to its end."""
    one = viewer(scripted)
    for number in range(12):
        given_up = asyncio.ensure_future(one.chunk(label=1, **FOR_EVER))
        await give_up_after(0.01 * number, one.session)
        assert not await asyncio.wait_for(given_up, 30)
        assert await one.chunk(label=2, groups=2)
    await one.session.close()

    assert one.numbers(CHUNKS) == list(range(12))
    assert set(one.numbers(LABEL)) == {2}
    assert [part.meta["chunk"] for part in one.made] == list(range(12))
    assert LOST not in caplog.text


async def test_controls_of_several_viewers_that_move_all_the_time_lose_no_stream(
    scripted: ModelClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Chunks are given up while they are made, and while they wait for those of the others."""
    viewers = [viewer(scripted) for _ in range(3)]

    async def move(one: Viewer, chance: random.Random) -> None:
        while len(one.made) < 15:
            chunk = asyncio.ensure_future(one.chunk(label=len(one.made), delay_s=0.03))
            await give_up_after(0.12 * chance.random(), one.session)
            if not await chunk:
                await one.chunk(label=len(one.made), delay_s=0.03)

    await asyncio.wait_for(asyncio.gather(*(move(v, random.Random(i)) for i, v in enumerate(viewers))), 60)
    await asyncio.gather(*(one.session.close() for one in viewers))
    await scripted.unload()

    assert all(one.given_up for one in viewers)
    for one in viewers:
        assert one.numbers(CHUNKS) == one.numbers(LABEL) == list(range(15))
    assert LOST not in caplog.text


async def test_a_chunk_whose_first_picture_is_there_is_made_to_its_end(scripted: ModelClient) -> None:
    session = TritonSession(scripted.api, SCRIPTED, lambda text: None)

    parts = []
    async for part in session.generate({"groups": 5, "delay_s": 0.05}, None):
        session.give_up()
        parts.append(part)
    await session.close()

    assert [len(part.frames) for part in parts] == [1] * 5


async def test_a_wish_to_give_up_that_comes_too_late_does_not_concern_the_next_chunk(
    scripted: ModelClient,
) -> None:
    one = viewer(scripted)

    await one.chunk()
    one.session.give_up()
    await one.chunk(delay_s=0.1)
    await one.session.close()

    assert one.numbers(CHUNKS) == [0, 1]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_viewer_who_leaves_in_the_middle_of_a_chunk_leaves_nothing_behind(
    scripted: ModelClient, waits: bool
) -> None:
    """waits: the chunk has not begun, for that of another viewer is being made."""
    other, leaving = viewer(scripted), viewer(scripted)
    await leaving.chunk()
    others = asyncio.ensure_future(other.chunk(delay_s=0.5 if waits else 0))
    await asyncio.sleep(0.1)
    chunk = asyncio.ensure_future(leaving.chunk(**FOR_EVER))
    await asyncio.sleep(0.1)

    chunk.cancel()
    await asyncio.gather(chunk, return_exceptions=True)
    await asyncio.wait_for(leaving.session.close(), 30)

    assert await others
    await other.chunk()
    await asyncio.wait_for(other.session.close(), 30)
    await asyncio.wait_for(scripted.unload(), 30)
    assert other.numbers(CHUNKS) == [0, 1]


@pytest.mark.parametrize("forgotten_by", ["Triton", "the model"])
async def test_a_lost_sequence_begins_afresh_with_the_same_request(
    scripted: ModelClient, forgotten_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = viewer(scripted)
    await one.chunk(label=1)
    sequence = one.session.sequence_id
    flags = "e" if forgotten_by == "Triton" else ""
    await scripted.send(sequence, {"op": "stop"}, flags=flags)

    await one.chunk(label=2)
    await one.chunk(label=3)
    await one.session.close()

    assert one.numbers(LABEL) == [1, 2, 3]
    assert one.numbers(CHUNKS) == [0, 0, 1]
    assert LOST in caplog.text


@pytest.mark.parametrize("forgotten_by", ["Triton", "the model"])
async def test_a_sequence_that_is_lost_under_a_chunk_does_not_mix_up_answers(
    scripted: ModelClient, forgotten_by: str
) -> None:
    """The wish to give it up finds no sequence, while the chunk is still being made."""
    one, ending = viewer(scripted), {"op": "stop" if forgotten_by == "the model" else "keep_alive"}
    await one.chunk(label=1)
    chunk = asyncio.ensure_future(one.chunk(label=2, delay_s=0.5))
    await asyncio.sleep(0.1)

    await scripted.send(one.session.sequence_id, ending, flags="e" if forgotten_by == "Triton" else "")
    one.session.give_up()
    await chunk
    await one.chunk(label=3)
    await one.session.close()

    assert one.numbers(LABEL)[-1] == 3
    assert one.numbers(CHUNKS)[-1] == len(one.made) - 2


async def test_neither_a_long_chunk_nor_a_long_wait_loses_the_stream(
    scripted: ModelClient, caplog: pytest.LogCaptureFixture
) -> None:
    await scripted.load(idle_s=1.0)
    one = viewer(scripted, keep_alive_s=0.4, doubt_s=0.2)

    await one.chunk()
    await one.chunk(delay_s=1.8)
    await asyncio.sleep(1.8)
    await one.chunk()
    await one.session.close()

    assert one.numbers(CHUNKS) == [0, 1, 2]
    assert LOST not in caplog.text


async def test_a_model_that_dies_while_it_makes_a_chunk_is_noticed(triton: EmbeddedTriton) -> None:
    """The last test: what is left of the model has to go with the server."""
    dead: list[str] = []
    async with ModelClient(triton, SCRIPTED) as client:
        await client.load()
        session = TritonSession(client.api, SCRIPTED, dead.append, doubt_s=0.5)
        chunk = asyncio.ensure_future(anext(session.generate(FOR_EVER, None)))
        await asyncio.sleep(0.2)

        for process in model_processes(triton.pid):
            process.kill()
        with pytest.raises(ServingLost, match="died"):
            await asyncio.wait_for(chunk, 30)
        await asyncio.wait_for(session.close(), 30)

    assert dead


async def test_a_preprocessor_runs_in_the_pipelines_process_between_chunks(
    triton: EmbeddedTriton, tmp_path: Path
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 28, 42, 3), np.uint8)
    plan = LoadPlan(
        engine_set=tmp_path, models=tmp_path, height=1, width=1, base_seed=0, preprocessors=tmp_path
    )

    async with ModelClient(triton, SCRIPTED) as client:
        await client.load(plan.as_parameters())
        one = viewer(client)
        await one.chunk(label=1)
        with pytest.raises(ChunkFailed, match="Run: download_models --pipeline video-depth-anything"):
            await one.session.preprocess("video-depth-anything", pictures)
        write_weights(tmp_path, tiny())
        depth = await one.session.preprocess("video-depth-anything", pictures)
        await one.chunk(label=2)
        await one.session.close()

    assert one.numbers(CHUNKS) == [0, 1]
    expected = load_preprocessor("video-depth-anything", plan)(pictures)
    assert np.abs(depth.astype(int) - expected).max() <= 1
