"""Spout: textures shared between programs on Windows, through SpoutGL."""

import sys
from typing import Any, Final

import numpy as np

from gateway.local_video.interface import Availability, LocalVideoError, Receiver, Sender, extra_available
from gateway.serving.interface import Images
from gateway.stream.pictures.video_input import MAX_PIXELS

ONLY_WINDOWS: Final = "Spout is only available on Windows"
_HINT: Final = "Run the gateway natively on Windows to share textures through Spout"
_GL_RGBA: Final = 0x1908
_GL_BGRA: Final = 0x80E1
_DXGI_BGRA: Final = (87, 88)  # B8G8R8A8_UNORM, B8G8R8X8_UNORM


def available(platform: str = sys.platform) -> Availability:
    if platform != "win32":
        return Availability(False, ONLY_WINDOWS, _HINT)
    return extra_available("SpoutGL", "spout", "Spout")


def senders(timeout_s: float = 0.0) -> list[str]:
    from SpoutGL import SpoutReceiver

    with SpoutReceiver() as receiver:
        return list(receiver.getSenderList())


def open_sender(name: str) -> Sender:
    return _SpoutSender(name)


def open_receiver(name: str) -> Receiver:
    return _SpoutReceiver(name)


class _SpoutSender:
    def __init__(self, name: str) -> None:
        from SpoutGL import SpoutSender

        self._sender: Any = SpoutSender()
        if not self._sender.createOpenGL():
            raise LocalVideoError("Spout found no OpenGL: a graphics driver and a desktop session are needed")
        self._sender.setSenderName(name)
        self._pixels = np.empty((0, 0, 4), np.uint8)

    def send(self, picture: Images) -> None:
        height, width = picture.shape[:2]
        if self._pixels.shape[:2] != (height, width):
            self._pixels = np.full((height, width, 4), 255, np.uint8)
        self._pixels[..., :3] = picture
        # The binding calls these two height and width, and hands them on as width and height.
        if not self._sender.sendImage(self._pixels, width, height, _GL_RGBA, False, 0):
            raise LocalVideoError("Spout did not take a picture")

    def close(self) -> None:
        self._sender.releaseSender()
        self._sender.closeOpenGL()


class _SpoutReceiver:
    def __init__(self, name: str) -> None:
        from SpoutGL import SpoutReceiver

        self._name = name  # the binding's getSenderName returns a width
        self._receiver: Any = SpoutReceiver()
        if not self._receiver.createOpenGL():
            raise LocalVideoError("Spout found no OpenGL: a graphics driver and a desktop session are needed")
        if name:
            self._receiver.setReceiverName(name)
        self._pixels: Any = None
        self._format = _GL_RGBA

    def receive(self) -> Images | None:
        received = self._receiver.receiveImage(self._pixels, self._format, False, 0)
        if self._receiver.isUpdated():  # another sender, or another size: the buffer has to follow
            self._resize()
            return None
        if not received:
            if self._pixels is not None:
                raise LocalVideoError(f"The Spout sender '{self._name or 'that was active'}' has gone")
            return None
        if self._pixels is None or not self._receiver.isFrameNew():
            return None
        # Asked for in the sender's own order: some drivers mix it up when they convert it.
        channels = [2, 1, 0] if self._format == _GL_BGRA else [0, 1, 2]
        picture: Images = self._pixels[..., channels].copy()
        return picture

    def _resize(self) -> None:
        width, height = self._receiver.getSenderWidth(), self._receiver.getSenderHeight()
        if width * height > MAX_PIXELS:
            raise LocalVideoError(
                f"Pictures of {width}x{height} pixels by Spout are too large: at most "
                f"{MAX_PIXELS / 1e6:.1f} million can be taken"
            )
        self._format = _GL_BGRA if self._receiver.getSenderFormat() in _DXGI_BGRA else _GL_RGBA
        self._pixels = np.zeros((height, width, 4), np.uint8) if width and height else None

    def close(self) -> None:
        self._receiver.releaseReceiver()
        self._receiver.closeOpenGL()
