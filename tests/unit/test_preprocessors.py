"""What VACE is shown in place of the input pictures."""

import numpy as np
import pytest

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
    assert (found[..., 0] == found[..., 2]).all()
