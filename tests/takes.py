"""Encoded pictures as a stream's encoder makes them, and takes written from them.

`python -m tests.takes DIRECTORY COUNT` writes `COUNT` pictures to a take that is never finished, names it and
waits to be killed.
"""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av

from benchmarks.frame_numbers import NumberedVideo, luma_of, read_number
from gateway.recording.take_writer import Limits, Packet, TakeWriter
from gateway.recording.takes import Takes

CLOCK = 90_000
SIZE = (128, 192)  # height and width
HEAD = {"format": 1, "stream": "main", "pipeline_id": "passthrough", "started_at": 1.0}

Pictures = Iterator[tuple[Packet, tuple[int, int]]]  # packet, width and height


def encoded(
    times_s: Iterable[float], size: tuple[int, int] = SIZE, first: int = 0, keys: Sequence[int] = (0,)
) -> Pictures:
    """Numbered pictures from number `first` on, shown at these times; those at `keys` can stand alone."""
    video = NumberedVideo(*size)
    context = av.VideoCodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = size[1], size[0], "yuv420p"
    context.time_base, context.framerate, context.gop_size = Fraction(1, CLOCK), Fraction(30), 3000
    context.options = {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"}
    for index, at_s in enumerate(times_s):
        frame = video.frame(first + index, at_s)
        frame.pts, frame.time_base = round(at_s * CLOCK), Fraction(1, CLOCK)
        frame.pict_type = av.video.frame.PictureType.I if index in keys else av.video.frame.PictureType.NONE
        for packet in context.encode(frame):
            yield packet, (size[1], size[0])


def steady(count: int, fps: float = 30.0, start_s: float = 0.0) -> list[float]:
    return [start_s + index / fps for index in range(count)]


def shown(path: Path) -> list[tuple[float, int | None]]:
    """When each picture of a video is shown, in seconds, and its number."""
    with av.open(str(path), format="mov") as container:
        return [
            (round(float(frame.time or 0), 3), read_number(luma_of(frame)))
            for frame in container.decode(video=0)
        ]


class Writing:
    """A take that is being written; `ended` is set when its files are closed."""

    def __init__(self, takes: Takes, limits: Limits | None = None, *, pipe: bool = False) -> None:
        """pipe: the video is a named pipe; opening it blocks until somebody reads."""
        self.ended = threading.Event()
        self.key_frames_wanted = 0
        self.takes = takes
        self.take = takes.begin("main")
        head = {**HEAD, "take": self.take}
        self.writer = TakeWriter(
            takes.directory, self.take, head, limits or Limits(free_bytes=0), self.ended.set, self._want
        )
        if pipe:
            os.mkfifo(self.path)
        self.writer.start()

    @property
    def path(self) -> Path:
        """The video while it is written."""
        return self.takes.directory / f"{self.take}.mp4.part"

    def put(self, pictures: Pictures) -> "Writing":
        for packet, size in pictures:
            self.writer.put(packet, size)
        return self

    def finish(self, error: str | None = None) -> "Writing":
        self.writer.finish(error)
        return self.wait()

    def wait(self) -> "Writing":
        assert self.ended.wait(30), "the take does not end"
        self.writer.join()
        return self

    def _want(self) -> None:
        self.key_frames_wanted += 1


def _main(directory: str, count: str) -> None:
    writing = Writing(Takes(Path(directory), start_bytes=0))
    writing.put(encoded(steady(int(count))))
    while writing.writer.written.frames < int(count):
        time.sleep(0.01)
    sys.stdout.write(f"{writing.take}\n")
    sys.stdout.flush()
    time.sleep(600)


if __name__ == "__main__":
    _main(*sys.argv[1:])
