"""NDI: pictures over the local network, through cyndilib.

NDI® is a registered trademark of Vizrt NDI AB. Its library comes with cyndilib, under a licence of its own.
"""

import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np

from gateway.local_video.interface import Availability, LocalVideoError, Receiver, Sender, extra_available
from gateway.serving.interface import Images
from gateway.stream.pictures.video_input import MAX_PIXELS

_FIND_S: Final = 3.0
_FPS: Final = 30  # nominal: pictures are sent when they are shown
_GONE_S: Final = 10.0  # without a connection; the library connects again by itself


def available(platform: str = sys.platform) -> Availability:
    return extra_available("cyndilib", "ndi", "NDI")


def senders(timeout_s: float = _FIND_S) -> list[str]:
    """Names as `MACHINE (name)`."""
    from cyndilib.finder import Finder

    finder = Finder()
    finder.open()
    try:
        return _found(finder, "", timeout_s)
    finally:
        finder.close()


def open_sender(name: str) -> Sender:
    return _NdiSender(name)


def open_receiver(name: str) -> Receiver:
    """name: `MACHINE (name)`, or the part in brackets."""
    return _NdiReceiver(name)


def _found(finder: Any, name: str, timeout_s: float) -> list[str]:
    """What is there once `name` is, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        names: list[str] = finder.get_source_names()
        left = deadline - time.monotonic()
        if (_match(name, names) and name) or left <= 0:
            return names
        finder.wait_for_sources(min(left, 0.2))


def _match(name: str, names: Sequence[str]) -> str | None:
    """The full name that is meant; an empty one means any."""
    ends = (n for n in names if n == name or n.endswith(f" ({name})") or not name)
    return next(ends, None)


class _NdiSender:
    def __init__(self, name: str) -> None:
        self._name = name
        self._sender: Any = None
        self._pixels = np.empty((0, 0, 4), np.uint8)

    def send(self, picture: Images) -> None:
        height, width = picture.shape[:2]
        if self._pixels.shape[:2] != (height, width):
            self._open(width, height)
        self._pixels[..., :3] = picture
        self._sender.write_video_async(self._pixels.reshape(-1))

    def _open(self, width: int, height: int) -> None:
        """A sender has one size: another one takes its place under the same name."""
        from cyndilib.sender import Sender as Library
        from cyndilib.video_frame import VideoSendFrame
        from cyndilib.wrapper.ndi_structs import FourCC

        self.close()
        frame = VideoSendFrame()
        frame.set_resolution(width, height)
        frame.set_frame_rate(Fraction(_FPS, 1))
        frame.set_fourcc(FourCC.RGBX)
        self._sender = Library(self._name, clock_video=False)
        self._sender.set_video_frame(frame)
        self._sender.open()
        self._pixels = np.full((height, width, 4), 255, np.uint8)

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None


class _NdiReceiver:
    def __init__(self, name: str) -> None:
        from cyndilib.finder import Finder
        from cyndilib.receiver import Receiver as Library
        from cyndilib.video_frame import VideoFrameSync
        from cyndilib.wrapper.ndi_recv import RecvColorFormat

        self._finder = Finder()
        self._finder.open()
        names = _found(self._finder, name, _FIND_S)
        full_name = _match(name, names)
        if full_name is None:
            self._finder.close()
            others = f"There are: {', '.join(names[:10])}" if names else "There is none at all"
            raise LocalVideoError(f"No NDI source '{name}' was found. {others}")
        self._name = full_name
        self._frame = VideoFrameSync()
        self._receiver = Library(color_format=RecvColorFormat.RGBX_RGBA)
        self._receiver.frame_sync.set_video_frame(self._frame)
        self._receiver.set_source(self._finder.get_source(full_name))
        self._shown = 0.0  # time stamp of the newest picture
        self._connected = time.monotonic()

    def receive(self) -> Images | None:
        now = time.monotonic()
        if self._receiver.is_connected():
            self._connected = now
        elif now - self._connected > _GONE_S:
            raise LocalVideoError(f"The NDI source '{self._name}' has gone")
        self._receiver.frame_sync.capture_video()
        width, height = self._frame.get_resolution()
        stamp = self._frame.get_timestamp_posix()
        if not width or not height or stamp == self._shown:
            return None
        self._shown = stamp
        if width * height > MAX_PIXELS:
            raise LocalVideoError(
                f"Pictures of {width}x{height} pixels from '{self._name}' are too large: at most "
                f"{MAX_PIXELS / 1e6:.1f} million can be taken"
            )
        rows = np.asarray(self._frame).reshape(height, self._frame.get_line_stride())
        picture: Images = rows[:, : 4 * width].reshape(height, width, 4)[..., :3].copy()
        return picture

    def close(self) -> None:
        self._receiver.disconnect()
        self._finder.close()
