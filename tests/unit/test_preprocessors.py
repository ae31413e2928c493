"""What VACE is shown in place of the input pictures."""

import cv2
import numpy as np
import pytest

from gateway.stream.pictures.optical_flow import coloured, optical_flow
from gateway.stream.pictures.preprocessors import PREPROCESSORS, gray, scribble

HEIGHT, WIDTH = 96, 128


def disc(radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance: np.ndarray = np.hypot(rows - 50, columns - 70) - radius
    return distance


def film() -> np.ndarray:
    """Two pictures of a disc that grows, orange on blue."""
    pictures = np.empty((2, HEIGHT, WIDTH, 3), np.uint8)
    for picture, radius in zip(pictures, (20, 30), strict=True):
        picture[:] = np.where(disc(radius)[..., None] < 0, (240, 150, 20), (30, 40, 160))
    return pictures


def test_gray_is_the_luma_of_the_specification_in_three_channels() -> None:
    pictures = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]]], np.uint8)

    assert gray(pictures).tolist() == [[[[76] * 3, [150] * 3, [29] * 3, [18] * 3]]]


def test_scribble_draws_white_lines_where_the_edges_are_and_nothing_else() -> None:
    edges = scribble(film())

    assert set(np.unique(edges)) == {0, 255}
    for picture, radius in zip(edges, (20, 30), strict=True):
        drawn = picture[..., 0] == 255
        assert np.abs(disc(radius)[drawn]).max() < 4
        on_the_edge = np.abs(disc(radius)) < 1
        assert drawn[on_the_edge].mean() > 0.8  # the filter leaves small gaps


def test_scribble_of_an_even_picture_is_black() -> None:
    assert not scribble(np.full((1, 16, 16, 3), 90, np.uint8)).any()


@pytest.mark.parametrize("name", PREPROCESSORS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 47), (96, 128)])
def test_pictures_keep_their_number_and_size(name: str, size: tuple[int, int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)

    found = PREPROCESSORS[name](pictures)

    assert (found.shape, found.dtype) == (pictures.shape, np.uint8)
    assert name == "optical-flow" or (found[..., 0] == found[..., 2]).all()


def shifted(dx: int, dy: int) -> np.ndarray:
    """Three pictures of a cloudy texture, all of which moves so many pixels per picture."""
    noise = np.random.default_rng(3).normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    luma = cv2.GaussianBlur(noise, (0, 0), 4)
    luma = (255 * (luma - luma.min()) / np.ptp(luma)).astype(np.uint8)
    return np.stack([np.roll(luma, (i * dy, i * dx), (0, 1)) for i in range(3)])[..., None].repeat(3, axis=-1)


@pytest.mark.parametrize(
    ("dx", "dy", "colour"),
    [  # as torchvision's flow_to_image draws them
        (3, 0, (255, 0, 0)),
        (-3, 0, (0, 209, 255)),
        (0, 3, (255, 229, 0)),
        (0, -3, (88, 0, 255)),
    ],
)
def test_motion_has_the_colour_of_its_direction(dx: int, dy: int, colour: tuple[int, int, int]) -> None:
    drawn = optical_flow(shifted(dx, dy))

    missing = 255 - np.median(drawn[:, 24:72, 32:96], axis=(0, 1, 2))
    assert missing.max() > 100  # of white: a full colour at the fastest place of the chunk
    assert np.abs(255 * missing / missing.max() - (255 - np.array(colour))).max() < 50
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_what_stands_still_is_white_and_a_single_picture_does() -> None:
    still = shifted(0, 0)

    assert optical_flow(still).min() == 255
    assert optical_flow(still[:1]).min() == 255


def test_colours_of_directions_are_those_of_the_published_wheel() -> None:
    # Values of torchvision.utils.flow_to_image for these unit vectors, which are on the wheel's 55 steps.
    angles = np.pi * (2 * np.array([0, 15, 21, 25, 36, 49]) / 54 - 1)
    flow = np.stack([-np.cos(angles), -np.sin(angles)], axis=-1).astype(np.float32)

    found = coloured(flow[None])[0].astype(int)

    corners = [(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255)]
    assert np.abs(found - corners).max() <= 1
    assert coloured(np.zeros((1, 1, 2), np.float32)).tolist() == [[[255, 255, 255]]]
