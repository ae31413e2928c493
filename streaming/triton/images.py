"""Images among a chunk's parameters, as pixels: all of them in one tensor beside the JSON, where a reference
says which part of it an image is. Torch-free: the gateway packs, a pipeline's Triton model unpacks.

A Triton on another machine has no assets directory, so paths do not travel.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streaming.errors import WanstreamError

IMAGES_INPUT: Final = "images"  # uint8 [bytes]: pixels of one image after the other; optional
IMAGE_KEYS: Final = ("vace_ref_images", "first_frame_image", "last_frame_image")

Pixels = npt.NDArray[np.uint8]  # an image [height, width, 3] RGB, or bytes


def pack_images(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], Pixels | None]:
    """Parameters for JSON, and tensor `images`; None when there is no image.

    The value of an image key is one image, uint8 [height, width, 3] RGB, or a list of them; other values
    stay. Each image becomes {"height": h, "width": w, "offset": bytes before it}.
    """
    packed, parts, offset = dict(parameters), [], 0

    def reference(image: Pixels) -> dict[str, int]:
        nonlocal offset
        height, width, _ = image.shape
        found = {"height": height, "width": width, "offset": offset}
        parts.append(np.ascontiguousarray(image, np.uint8).reshape(-1))
        offset += image.nbytes
        return found

    for key in IMAGE_KEYS:
        value = parameters.get(key)
        if isinstance(value, np.ndarray):
            packed[key] = reference(value)
        elif isinstance(value, list):
            packed[key] = [reference(image) for image in value]
    return packed, np.concatenate(parts) if parts else None


def unpack_images(parameters: Mapping[str, Any], data: Pixels | None) -> dict[str, Any]:
    """The inverse of `pack_images`; `data` may be let go afterwards. Raises WanstreamError."""
    unpacked = dict(parameters)
    for key in IMAGE_KEYS:
        value = parameters.get(key)
        if isinstance(value, list):
            unpacked[key] = [_pixels(key, each, data) for each in value]
        elif value is not None:
            unpacked[key] = _pixels(key, value, data)
    return unpacked


def _pixels(key: str, reference: Any, data: Pixels | None) -> Pixels:
    try:
        height, width, offset = (int(reference[name]) for name in ("height", "width", "offset"))
    except (TypeError, KeyError, ValueError):
        height, width, offset = 0, 0, 0
    size = height * width * 3
    if data is None or min(height, width) < 1 or offset < 0 or offset + size > len(data):
        raise WanstreamError(
            f"Parameter '{key}' needs an image as {{height, width, offset}} of pixels in tensor "
            f"'{IMAGES_INPUT}', uint8 RGB one after the other."
        )
    return data[offset : offset + size].reshape(height, width, 3).copy()
