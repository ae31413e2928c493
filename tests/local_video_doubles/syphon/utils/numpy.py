from typing import Any

from syphon import Texture


def copy_image_to_mtl_texture(image: Any, texture: Texture) -> None:
    assert image.shape == (texture.height(), texture.width(), 4)
    texture.pixels = image.copy()


def copy_mtl_texture_to_image(texture: Texture) -> Any:
    return texture.pixels.copy()
