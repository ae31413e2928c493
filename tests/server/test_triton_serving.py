"""The gateway's side of Triton, against the real embedded server."""

import asyncio
import os
from collections.abc import AsyncIterator

import numpy as np
import pytest

from gateway.embedded.leftovers import SHARED_MEMORY
from gateway.embedded.server import EmbeddedTriton, model_repository
from gateway.serving.interface import ChunkFailed, Images
from gateway.triton.serving import TritonServing
from streaming.specs import SPECS

PASSTHROUGH = SPECS["passthrough"]
PICTURES: Images = np.random.default_rng(5).integers(0, 256, (1, 128, 128, 3), np.uint8)


@pytest.fixture
async def serving() -> AsyncIterator[TritonServing]:
    """Passthrough on a server of its own."""
    repository = model_repository()
    triton = TritonServing(repository, embedded=EmbeddedTriton([repository]))
    await triton.start(lambda text: None)
    await triton.load(PASSTHROUGH, {"height": 512, "width": 512}, lambda text: None)
    yield triton
    await triton.close()


async def unload_ends(serving: TritonServing) -> bool:
    """Whether the server that was there before is still the one that answers after unloading."""
    before = serving.url
    await serving.unload()
    return serving.url == before and await serving.is_ready()


async def test_pictures_come_back_bit_for_bit(serving: TritonServing) -> None:
    session = serving.open_session()

    frames = [chunk.frames async for chunk in session.generate({"init_cache": True}, PICTURES)]

    await session.close()
    assert np.array_equal(np.concatenate(frames), PICTURES)


async def test_pictures_may_change_their_size(serving: TritonServing) -> None:
    session = serving.open_session()
    rng = np.random.default_rng(7)
    sizes = [(64, 96), (128, 160), (32, 48), (256, 256)]
    pictures = [rng.integers(0, 256, (2, *size, 3), np.uint8) for size in sizes]

    received = []
    for video in pictures:
        async for chunk in session.generate({"init_cache": True}, video):
            received.append(chunk.frames)

    await session.close()
    assert all(np.array_equal(a, b) for a, b in zip(received, pictures, strict=True))


async def test_a_closed_session_leaves_no_shared_memory(serving: TritonServing) -> None:
    session = serving.open_session()
    async for _ in session.generate({"init_cache": True}, PICTURES):
        pass
    during = list(SHARED_MEMORY.glob(f"wanstream_*_{os.getpid()}_*frames*"))

    await session.close()

    assert len(during) == 1
    assert not during[0].exists()


async def test_a_failed_chunk_leaves_the_session_usable(serving: TritonServing) -> None:
    session = serving.open_session()

    with pytest.raises(ChunkFailed, match="Input cannot be None"):
        _ = [chunk async for chunk in session.generate({"init_cache": True}, None)]
    frames = [chunk.frames async for chunk in session.generate({}, PICTURES)]

    await session.close()
    assert np.array_equal(np.concatenate(frames), PICTURES)


@pytest.mark.parametrize("how", ["in order", "in the middle of a chunk"])
async def test_many_sessions_leave_nothing_that_stops_an_unload(serving: TritonServing, how: str) -> None:
    for number in range(40):
        session = serving.open_session()
        async for _ in session.generate({"init_cache": True}, PICTURES):
            pass
        if how == "in the middle of a chunk":
            chunk = session.generate({}, PICTURES)
            waiting = asyncio.ensure_future(anext(chunk))
            await asyncio.sleep(0.001 * (number % 10))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await chunk.aclose()
        await session.close()

    assert await unload_ends(serving)
