from syphon import Texture


def create_mtl_texture(device: object, width: int, height: int) -> Texture:
    return Texture(width, height)
