"""The input video as control of VACE: what a chunk is given, and what people see of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gateway.pipelines.state import Pipelines
from gateway.stream.parameters.state import ParameterContext, ParameterState
from gateway.stream.pictures.optical_flow import optical_flow
from gateway.stream.pictures.preprocessors import gray, scribble
from gateway.stream.stream import Stream
from streaming.specs import LONGLIVE
from tests.server.double import DoubleServing, DoubleSession, Faults
from tests.server.peer import until
from tests.unit.test_peer_close import Nobody
from tests.unit.test_pipelines import request, settled
from tests.unit.test_stream import RecordedControl

SIZE = {"height": 64, "width": 128}
_LIMIT_S = 30.0


def film() -> np.ndarray:
    """One chunk of a box on a coloured ground; it stands still, since of many pictures some are chosen."""
    pictures = np.full((12, 64, 128, 3), (20, 90, 160), np.uint8)
    pictures[:, 20:40, 30:60] = (250, 200, 40)
    return pictures


class Filmed:
    """A stream in video mode whose source goes on showing the film."""

    def __init__(self, stream: Stream, serving: DoubleServing) -> None:
        self.stream = stream
        self._serving = serving
        self.told = RecordedControl()
        stream.add_control(self.told)

    @property
    def faults(self) -> Faults:
        return self._serving.faults

    @property
    def session(self) -> DoubleSession:
        return self._serving.sessions[-1]

    async def next_chunk(self) -> Any:
        """The input of a chunk that begins from now on."""
        before = len(self.session.chunks) + 1 if self._serving.sessions else 1  # one may be in the making
        feed = self.stream.input.feed(lambda: None)

        def is_there() -> bool:
            if self._serving.sessions and len(self.session.chunks) > before:
                return True
            for picture in film():
                feed.push(picture, (64, 128))
            return False

        await until(is_there, _LIMIT_S, "a chunk of the film")
        return self.session.video


@asynccontextmanager
async def filmed(directory: Path, *, vace: bool = True, **parameters: Any) -> AsyncIterator[Filmed]:
    serving = DoubleServing(Faults(chunk_delay_s=0.01))
    pipelines = Pipelines(serving, load_timeout_s=_LIMIT_S)
    load = SIZE | {"vace_enabled": vace, "base_seed": 1}
    pipelines.request_load(request("longlive", **load))
    await settled(pipelines)
    context = ParameterContext(LONGLIVE, load, directory)
    state = ParameterState.open(context, {"input_mode": "video", **parameters})
    stream = Stream("stream", pipelines, state, Nobody())
    stream.always_run()
    try:
        yield Filmed(stream, serving)
    finally:
        await stream.close()
        await pipelines.close()


async def test_the_preprocessor_is_chosen_while_streaming(tmp_path: Path) -> None:
    async with filmed(tmp_path) as it:
        seen = {"none": await it.next_chunk()}
        for name in ("gray", "scribble", "optical-flow", "video-depth-anything"):
            assert await it.stream.update({"vace_preprocessor": name}) == []
            seen[name] = await it.next_chunk()
            assert it.stream.worker.control is not None
            assert it.stream.worker.control.shape == (12, 64, 128, 3)

    np.testing.assert_array_equal(seen["none"], film())
    np.testing.assert_array_equal(seen["gray"], gray(film()))
    np.testing.assert_array_equal(seen["scribble"], scribble(film()))
    np.testing.assert_array_equal(seen["optical-flow"], optical_flow(film()))
    np.testing.assert_array_equal(seen["video-depth-anything"], 255 - film())


async def test_a_preprocessor_that_fails_is_taken_back_with_its_reason_and_the_stream_goes_on(
    tmp_path: Path,
) -> None:
    async with filmed(tmp_path, vace_preprocessor="gray") as it:
        await it.next_chunk()
        it.faults.chunk_error, it.faults.chunk_errors = "its weights are not there", 1

        await it.stream.update({"vace_preprocessor": "video-depth-anything"})

        np.testing.assert_array_equal(await it.next_chunk(), gray(film()))
        (problem,) = [p for m in it.told.messages if m["type"] == "parameter_error" for p in m["errors"]]
    assert (problem["loc"], problem["msg"]) == (["vace_preprocessor"], "its weights are not there")


@pytest.mark.parametrize("off", [{"vace_enabled": False}, {"vace_use_input_video": False}])
async def test_input_that_vace_does_not_take_is_left_as_it_is(off: dict[str, Any], tmp_path: Path) -> None:
    async with filmed(tmp_path, vace_preprocessor="gray") as it:
        await it.next_chunk()
        assert it.stream.worker.control is not None

        await it.stream.update(off)

        np.testing.assert_array_equal(await it.next_chunk(), film())
        assert it.stream.worker.control is None


async def test_without_vace_there_is_no_control_and_a_preprocessor_is_refused(tmp_path: Path) -> None:
    async with filmed(tmp_path, vace=False) as it:
        (problem,) = await it.stream.update({"vace_preprocessor": "gray"})

        np.testing.assert_array_equal(await it.next_chunk(), film())
        assert it.stream.worker.control is None
    assert problem["msg"] == "VACE is not loaded; load the pipeline with vace_enabled true"


async def test_images_that_the_pipeline_refuses_are_dropped_with_its_reason(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    async with filmed(tmp_path) as it:
        await it.next_chunk()
        it.faults.chunk_error, it.faults.chunk_errors = "no room for both", 1

        await it.stream.update({"first_frame_image": "a.png", "last_frame_image": "a.png"})
        await it.next_chunk()

        (problem,) = [p for m in it.told.messages if m["type"] == "parameter_error" for p in m["errors"]]
        given = [c for c in it.session.chunks if "last_frame_image" in c.parameters]
    assert (problem["loc"], problem["msg"]) == (["first_frame_image", "last_frame_image"], "no room for both")
    assert len(given) == 1


async def test_control_ends_with_video_mode(tmp_path: Path) -> None:
    async with filmed(tmp_path) as it:
        await it.next_chunk()

        await it.stream.update({"input_mode": "text"})
        await until(lambda: it.stream.worker.control is None, _LIMIT_S, "a chunk without input")
