"""Syphon: textures shared between programs on macOS, through syphon-python."""

import sys
from typing import Any, Final

import numpy as np

from gateway.local_video.interface import Availability, LocalVideoError, Receiver, Sender, extra_available
from gateway.serving.interface import Images
from gateway.stream.pictures.video_input import MAX_PIXELS

ONLY_MACOS: Final = "Syphon is only available on macOS"
_HINT: Final = "Run the gateway natively on macOS to share textures through Syphon"
_RGBA8: Final = 70  # MTLPixelFormatRGBA8Unorm
_RUN_LOOP_S: Final = 0.2


def available(platform: str = sys.platform) -> Availability:
    if platform != "darwin":
        return Availability(False, ONLY_MACOS, _HINT)
    return extra_available("syphon", "syphon", "Syphon")


def senders(timeout_s: float = _RUN_LOOP_S) -> list[str]:
    return [server.name for server in _servers(timeout_s)]


def open_sender(name: str) -> Sender:
    return _SyphonSender(name)


def open_receiver(name: str) -> Receiver:
    return _SyphonReceiver(name)


def _servers(timeout_s: float) -> Any:
    import syphon

    directory = syphon.SyphonServerDirectory()
    directory.run_loop_interval = timeout_s  # `servers` runs this thread's loop for so long
    return directory.servers


class _SyphonSender:
    def __init__(self, name: str) -> None:
        import syphon

        self._server = syphon.SyphonMetalServer(name)
        self._texture: Any = None
        self._pixels = np.empty((0, 0, 4), np.uint8)

    def send(self, picture: Images) -> None:
        from syphon.utils.numpy import copy_image_to_mtl_texture
        from syphon.utils.raw import create_mtl_texture

        height, width = picture.shape[:2]
        if self._pixels.shape[:2] != (height, width):
            self._pixels = np.full((height, width, 4), 255, np.uint8)
            self._texture = create_mtl_texture(self._server.device, width, height)
        self._pixels[..., :3] = picture
        copy_image_to_mtl_texture(self._pixels, self._texture)
        self._server.publish_frame_texture(self._texture)

    def close(self) -> None:
        self._server.stop()


class _SyphonReceiver:
    def __init__(self, name: str) -> None:
        import syphon

        servers = _servers(_RUN_LOOP_S)
        found = next(
            (server for server in servers if not name or name in (server.name, server.app_name)), None
        )
        if found is None:
            others = ", ".join(server.name for server in servers[:10]) or "none at all"
            raise LocalVideoError(f"No Syphon server '{name}' was found. There are: {others}")
        self._name = name
        self._client = syphon.SyphonMetalClient(found)

    def receive(self) -> Images | None:
        from syphon.utils.numpy import copy_mtl_texture_to_image

        if not self._client.is_valid:
            raise LocalVideoError(f"The Syphon server '{self._name or 'that was there'}' has gone")
        texture = self._client.new_frame_image if self._client.has_new_frame else None
        if texture is None:
            return None
        if texture.width() * texture.height() > MAX_PIXELS:
            raise LocalVideoError(
                f"Pictures of {texture.width()}x{texture.height()} pixels by Syphon are too large: at most "
                f"{MAX_PIXELS / 1e6:.1f} million can be taken"
            )
        channels = [0, 1, 2] if texture.pixelFormat() == _RGBA8 else [2, 1, 0]  # the other one is BGRA
        picture: Images = copy_mtl_texture_to_image(texture)[..., channels]
        return picture

    def close(self) -> None:
        self._client.stop()
