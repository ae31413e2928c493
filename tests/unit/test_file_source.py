"""A video file as a source: every picture in order, again and again; files that are of no use."""

import itertools
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from benchmarks.frame_numbers import NumberedVideo, luma_of, read_number
from gateway.errors import ApiError
from gateway.serving.interface import Images
from gateway.stream.pictures import file_source
from gateway.stream.pictures.file_source import FileSource, open_file
from gateway.stream.pictures.video_input import VideoInput
from tests.server.peer import until

COUNT = 12
FPS = 50


def write_video(path: Path, size: tuple[int, int] = (96, 160), count: int = COUNT) -> Path:
    """A video of `count` numbered pictures. size: height and width in pixels."""
    video = NumberedVideo(*size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": "6"})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        for number in range(count):
            frame = video.frame(number, number / FPS)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


class Shown:
    """A ring of a stream in video mode, and what was pushed into it."""

    def __init__(self) -> None:
        self.mode = "video"
        self.ring = VideoInput(lambda: self.mode == "video")
        self.ring.expect(500, None)
        self.began = 0
        self.lost: list[str] = []

    async def play(self, path: Path) -> FileSource:
        source = await open_file(path, self.lost.append)
        source.start(self.ring.feed(self._begin))
        return source

    def _begin(self) -> None:
        self.began += 1

    async def pictures(self, count: int) -> list[Images]:
        await until(lambda: self.ring.buffered >= count, 30, f"{count} pictures")
        return self.ring.take(self.ring.buffered) or []


@pytest.fixture
async def shown() -> Shown:
    return Shown()


def number_of(picture: Images) -> int | None:
    return read_number(
        luma_of(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p"))
    )


async def test_a_file_is_played_in_order_again_and_again(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_source, "_LATE_S", float("inf"))  # a machine that is late leaves none out
    monkeypatch.setattr(file_source, "_HOPELESS_S", float("inf"))
    source = await shown.play(write_video(tmp_path / "film.mp4"))

    numbers = [number_of(picture) for picture in await shown.pictures(3 * COUNT)]
    source.stop()

    assert numbers == [number % COUNT for number in range(len(numbers))]
    assert (shown.began, shown.lost) == (1, [])
    assert (source.info["kind"], source.name, source.width, source.height, source.fps) == (
        "file",
        "film.mp4",
        160,
        96,
        FPS,
    )


async def test_time_goes_on_where_the_file_begins_again(tmp_path: Path) -> None:
    source = await open_file(write_video(tmp_path / "film.mkv"), print)

    due = [at_s for at_s, _ in itertools.islice(source._frames(), 3 * COUNT)]

    assert np.allclose(np.diff(due), 1 / FPS, atol=0.002)  # Matroska counts milliseconds


async def test_a_file_stands_still_while_no_picture_is_wanted(tmp_path: Path, shown: Shown) -> None:
    shown.mode = "text"
    source = await shown.play(write_video(tmp_path / "film.mp4", count=3 * FPS))

    await until(lambda: shown.began, 30, "the source before is over")
    shown.mode = "video"
    first = number_of((await shown.pictures(1))[0])
    source.stop()

    assert first == 0
    assert shown.ring.frames_in < 3 * FPS  # one that was skipped, and those since


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def half_of_a_video(path: Path) -> None:
    write_video(path)
    os.truncate(path, path.stat().st_size // 2)  # the index is at the end


def huge(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=FPS, width=3840, height=2160, pix_fmt="yuvj420p")
        container.mux(stream.encode(av.VideoFrame(3840, 2160, "yuvj420p")))
        container.mux(stream.encode())


UNREADABLE: dict[str, tuple[Any, str]] = {
    "text": (lambda path: path.write_text("no video"), "cannot be decoded"),
    "empty": (lambda path: path.touch(), "cannot be decoded"),
    "half": (half_of_a_video, "cannot be decoded"),
    "sound": (sound_only, "only sound"),
    "huge": (huge, "too large"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_a_file_that_cannot_be_played_is_refused_with_a_reason(kind: str, tmp_path: Path) -> None:
    make, reason = UNREADABLE[kind]
    path = tmp_path / "film.mp4"
    make(path)

    with pytest.raises(ApiError, match=reason) as refused:
        await open_file(path, print)

    assert refused.value.status == 400


async def test_a_picture_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=r"no video: choose one of .*\.mp4"):
        await open_file(tmp_path / "picture.png", print)


async def test_a_file_that_breaks_while_it_plays_is_lost_with_a_reason(tmp_path: Path, shown: Shown) -> None:
    path = write_video(tmp_path / "film.mp4", (480, 640), count=4 * FPS)
    await shown.play(path)
    await shown.pictures(1)

    path.write_bytes(b"")  # somebody overwrites it in place
    await until(lambda: shown.lost, 30, "the source is lost")

    assert "film.mp4' has stopped" in shown.lost[0]
    assert len(shown.lost) == 1
