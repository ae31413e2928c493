"""Pictures that carry a number which survives the video codec, to see which frame came back when."""

import asyncio
import time
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from aiortc import MediaStreamTrack
from av import VideoFrame

Image = npt.NDArray[np.uint8]

BITS = 16
_COLUMNS, _ROWS = 8, 2
_CLOCK = 90_000


def draw_number(image: Image, number: int) -> None:
    """Paint `number` mod 2^16 over the upper half of `image`, uint8 [H, W, 3], as 16 black or white boxes."""
    top = image[: image.shape[0] // 2]
    for bit in range(BITS):
        row, column = divmod(bit, _COLUMNS)
        _box(top, row, column)[:] = 235 if number >> bit & 1 else 16


def read_number(image: Image) -> int:
    """The number painted by `draw_number`; uint8 [H, W] or [H, W, 3], any size."""
    top = image[: image.shape[0] // 2]
    values = [_box(top, *divmod(bit, _COLUMNS)) for bit in range(BITS)]
    return sum(1 << bit for bit, box in enumerate(values) if _centre(box).mean() > 127)


def _box(top: Image, row: int, column: int) -> Image:
    height, width = top.shape[0] // _ROWS, top.shape[1] // _COLUMNS
    return top[row * height : (row + 1) * height, column * width : (column + 1) * width]


def _centre(box: Image) -> Image:
    height, width = box.shape[:2]
    return box[height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]


class NumberedVideo(MediaStreamTrack):
    """A camera whose frames are numbered from 0, with a moving pattern in the lower half."""

    kind = "video"

    def __init__(self, width: int = 128, height: int = 96, fps: float = 30.0) -> None:
        super().__init__()
        self.sent_at: dict[int, float] = {}  # frame number -> time.monotonic() when it was handed out
        self._fps = fps
        self._started: float | None = None
        self._image = np.zeros((height, width, 3), np.uint8)
        self._ramp = (np.add.outer(np.arange(height), 2 * np.arange(width)) % 256).astype(np.uint8)

    @property
    def next_number(self) -> int:
        return len(self.sent_at)

    async def recv(self) -> VideoFrame:
        number = self.next_number
        now = time.monotonic()
        if self._started is None:
            self._started = now
        await asyncio.sleep(max(0.0, self._started + number / self._fps - now))
        half = self._image.shape[0] // 2
        self._image[half:] = np.roll(self._ramp[half:], number, axis=1)[..., None]
        draw_number(self._image, number)
        frame = VideoFrame.from_ndarray(self._image, format="rgb24")
        frame.pts, frame.time_base = int(number * _CLOCK / self._fps), Fraction(1, _CLOCK)
        self.sent_at[number] = time.monotonic()
        return frame
