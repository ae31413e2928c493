"""Moving JPEGs: encoded once for all who read one quality."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.config import Limits
from gateway.pipelines.load_params import LoadRequest
from gateway.pipelines.state import Pipelines, State
from gateway.serving.interface import Images
from gateway.stream.pictures import jpegs as module
from gateway.stream.pictures.jpegs import Jpegs
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams
from streaming.specs import SPECS
from tests.server.double import DoubleServing
from tests.unit.test_peer_close import Nobody


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[Stream]:
    """The double shows LongLive."""
    pipelines = Pipelines(DoubleServing(), load_timeout_s=60)
    params = {"height": 64, "width": 128}
    pipelines.request_load(LoadRequest(SPECS["longlive"], params, [], chosen=frozenset()))
    await pipelines.wait_for(State.LOADED)
    streams = Streams(pipelines, Nobody(), tmp_path, Limits())
    yield await streams.create(kept=True)
    await streams.close()
    await pipelines.close()


async def read(jpegs: Jpegs, stream: Stream, quality: int, count: int = 12) -> list[bytes]:
    pictures: list[bytes] = []
    reader = jpegs.sequence(stream, quality).read(30)
    async for picture in reader:
        pictures.append(picture)
        if len(pictures) == count:
            break
    await reader.aclose()  # type: ignore[attr-defined]
    return pictures


async def test_pictures_are_encoded_once_per_quality_however_many_read_them(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: dict[int, list[bytes]] = {50: [], 90: []}
    encode = module.jpeg

    def counted(image: Images, quality: int) -> bytes:
        encoded[quality].append(encode(image, quality))
        return encoded[quality][-1]

    monkeypatch.setattr(module, "jpeg", counted)
    jpegs = Jpegs()

    *many, other = await asyncio.gather(*(read(jpegs, stream, 50) for _ in range(6)), read(jpegs, stream, 90))
    shown = stream.output.frames_out

    ours = {id(picture) for picture in encoded[50]}
    assert all(id(picture) in ours for pictures in many for picture in pictures)
    assert len(encoded[50]) <= shown
    assert len(encoded[90]) <= shown
    assert len(other) == 12
    assert stream.sinks == ()
