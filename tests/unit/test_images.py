"""Images among a chunk's parameters: pixels in one tensor beside the JSON."""

import json
from typing import Any

import numpy as np
import pytest

from streaming.errors import WanstreamError
from streaming.triton.images import pack_images, unpack_images


def image(height: int, width: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_images_of_any_sizes_arrive_as_they_were_sent() -> None:
    sent = {
        "prompts": [{"text": "a boat", "weight": 1.0}],
        "vace_ref_images": [image(5, 7, 0), image(2, 3, 1)],
        "last_frame_image": image(4, 4, 2),
    }

    packed, data = pack_images(sent)
    received = unpack_images(json.loads(json.dumps(packed)), data)

    assert received.keys() == sent.keys()
    assert received["prompts"] == sent["prompts"]
    for found, expected in zip(received["vace_ref_images"], sent["vace_ref_images"], strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(received["last_frame_image"], sent["last_frame_image"])


def test_without_images_there_is_no_tensor() -> None:
    parameters: dict[str, Any] = {"vace_ref_images": [], "first_frame_image": None, "vace_context_scale": 0.5}

    assert pack_images(parameters) == (parameters, None)
    assert unpack_images(parameters, None) == parameters


def test_a_received_image_does_not_depend_on_the_tensor() -> None:
    packed, data = pack_images({"first_frame_image": image(3, 3, 3)})
    assert data is not None

    received = unpack_images(packed, data)
    data[:] = 0

    np.testing.assert_array_equal(received["first_frame_image"], image(3, 3, 3))


@pytest.mark.parametrize(
    "value",
    [
        "a/path.png",
        {},
        {"height": 2, "width": 2, "offset": 1},
        {"height": -2, "width": -2, "offset": 0},
        {"height": 0, "width": 9, "offset": 0},
        {"height": 1, "width": 1, "offset": -3},
        {"height": "x", "width": 1, "offset": 0},
    ],
)
def test_what_is_no_image_is_named(value: Any) -> None:
    with pytest.raises(WanstreamError, match="'vace_ref_images' needs an image as"):
        unpack_images({"vace_ref_images": [value]}, np.zeros(12, np.uint8))
