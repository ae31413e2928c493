"""syphon-python 0.1.1 as far as the gateway uses it, for machines that are not macOS.

Source: the library's README and modules. Discovery needs a run loop, so the first look finds nothing.
"""

from dataclasses import dataclass
from typing import Any

RGBA8, BGRA8 = 70, 80


class Texture:
    """A Metal texture: rows of four bytes per pixel."""

    def __init__(self, width: int, height: int, pixel_format: int = RGBA8) -> None:
        self._size = width, height
        self._format = pixel_format
        self.pixels: Any = None

    def width(self) -> int:
        return self._size[0]

    def height(self) -> int:
        return self._size[1]

    def pixelFormat(self) -> int:
        return self._format


@dataclass
class SyphonServerDescription:
    uuid: str
    name: str
    app_name: str
    raw: "SyphonMetalServer"


running: list["SyphonMetalServer"] = []


class SyphonMetalServer:
    def __init__(self, name: str) -> None:
        self.name = name
        self.device = "the system's default"
        self.published: Texture | None = None
        self.frames = 0
        running.append(self)

    def publish_frame_texture(self, texture: Texture) -> None:
        """Clients get textures in BGRA, whatever the server drew in."""
        assert texture.pixelFormat() == RGBA8
        shown = Texture(texture.width(), texture.height(), BGRA8)
        shown.pixels = texture.pixels[..., [2, 1, 0, 3]].copy()
        self.published = shown
        self.frames += 1

    def stop(self) -> None:
        running.remove(self)


class SyphonServerDirectory:
    def __init__(self) -> None:
        self.run_loop_interval = 1.0

    @property
    def servers(self) -> list[SyphonServerDescription]:
        return [SyphonServerDescription(str(id(s)), s.name, "test", s) for s in running]


class SyphonMetalClient:
    def __init__(self, description: SyphonServerDescription) -> None:
        self._server = description.raw
        self._seen = 0

    @property
    def is_valid(self) -> bool:
        return self._server in running

    @property
    def has_new_frame(self) -> bool:
        return self._server.frames > self._seen

    @property
    def new_frame_image(self) -> Texture | None:
        self._seen = self._server.frames
        return self._server.published

    def stop(self) -> None:
        pass
