"""SpoutGL 0.1.1 as far as the gateway uses it, with its quirks, for machines that are not Windows.

The names of arguments are the binding's own. Source: src/PySpoutGL.cpp of jlai/Python-SpoutGL, and what
Spout's documentation says. In a thread that is the wrong one OpenGL fails in ways of its own; this raises.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

GL_RGBA, GL_BGRA = 0x1908, 0x80E1
DXGI_RGBA, DXGI_BGRA = 28, 87
_SEND_S = 0.002  # a texture goes to the graphics card


@dataclass
class Texture:
    """What a sender shares: rows of four bytes per pixel, in the order of `dxgi_format`."""

    pixels: Any
    dxgi_format: int = DXGI_RGBA
    frame: int = 0


@dataclass
class Machine:
    """What all programs share. with_opengl: whether there is a graphics driver."""

    textures: dict[str, Texture] = field(default_factory=dict)
    with_opengl: bool = True
    refuse: int = 0  # this many further pictures are not taken


machine = Machine()


class _OneThread:
    def __init__(self) -> None:
        self._owner: int | None = None

    def createOpenGL(self) -> bool:
        self._owner = threading.get_ident()
        return machine.with_opengl

    def closeOpenGL(self) -> bool:
        self._check()
        self._owner = None
        return True

    def _check(self) -> None:
        if threading.get_ident() != self._owner:
            raise RuntimeError("OpenGL context of another thread")


class SpoutSender(_OneThread):
    def __init__(self) -> None:
        super().__init__()
        self._name = ""

    def setSenderName(self, name: str) -> None:
        self._check()
        self._name = name or "python"  # without a name, that of the program

    def sendImage(
        self, pixelBuffer: Any, height: int, width: int, glFormat: int, invert: bool, hostFbo: int
    ) -> bool:
        """Hands `height` on as width, and the reverse."""
        self._check()
        time.sleep(_SEND_S)
        view = memoryview(pixelBuffer)
        if view.nbytes < width * height * 4:
            raise BufferError("Buffer not large enough")
        if not view.c_contiguous:
            raise BufferError("Buffer must be contiguous")
        if machine.refuse > 0:
            machine.refuse -= 1
            return False
        real_width, real_height = height, width
        pixels = np.frombuffer(view.tobytes(), np.uint8).reshape(real_height, real_width, 4)
        before = machine.textures.get(self._name)
        machine.textures[self._name] = Texture(pixels, frame=(before.frame if before else 0) + 1)
        return glFormat == GL_RGBA and not invert and hostFbo == 0

    def releaseSender(self) -> None:
        self._check()
        machine.textures.pop(self._name, None)


class SpoutReceiver(_OneThread):
    def __init__(self) -> None:
        super().__init__()
        self._name = ""
        self._size = (0, 0)  # width and height, as known before the last call
        self._format = 0
        self._updated = False
        self._frame = -1
        self._new = False

    def __enter__(self) -> "SpoutReceiver":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def getSenderList(self) -> list[str]:
        return list(machine.textures)

    def setReceiverName(self, name: str) -> None:
        self._check()
        self._name = name

    def receiveImage(self, buffer: Any, glFormat: int, invert: bool, hostFbo: int) -> bool:
        """The first call, and one after a change of size, only make `isUpdated` true."""
        self._check()
        if buffer is not None and memoryview(buffer).nbytes < self._size[0] * self._size[1] * 4:
            raise BufferError("Buffer not large enough")
        name = self._name or next(iter(machine.textures), "")
        texture = machine.textures.get(name)
        if texture is None:
            return False
        height, width = texture.pixels.shape[:2]
        if (width, height) != self._size or texture.dxgi_format != self._format:
            self._size, self._format, self._updated = (width, height), texture.dxgi_format, True
            return True
        self._new = texture.frame != self._frame
        self._frame = texture.frame
        if buffer is not None:
            # A driver that does not convert: bytes come in the texture's order whatever was asked for.
            np.frombuffer(memoryview(buffer), np.uint8)[:] = texture.pixels.reshape(-1)
        return True

    def isUpdated(self) -> bool:
        updated, self._updated = self._updated, False
        return updated

    def isFrameNew(self) -> bool:
        return self._new

    def getSenderWidth(self) -> int:
        return self._size[0]

    getSenderName = getSenderWidth  # so it is bound

    def getSenderHeight(self) -> int:
        return self._size[1]

    def getSenderFormat(self) -> int:
        return self._format

    def releaseReceiver(self) -> None:
        self._check()
