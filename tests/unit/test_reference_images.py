"""Images of a chunk's parameters: which pixels they are, and what becomes of those that cannot be read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gateway.files.reference_images import MOST_PIXELS, names_images, read_images

LEFT_HALF, RIGHT_HALF = (200, 30, 10), (10, 60, 220)


def two_halves(width: int = 8, height: int = 4) -> Image.Image:
    image = Image.new("RGB", (width, height), LEFT_HALF)
    image.paste(RIGHT_HALF, (width // 2, 0, width, height))
    return image


def read(directory: Path, name: str) -> Any:
    found = read_images({"first_frame_image": name}, directory)
    assert found.problems == []
    return found.parameters["first_frame_image"]


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_an_image_is_its_pixels(suffix: str, tmp_path: Path) -> None:
    two_halves().save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))

    np.testing.assert_array_equal(read(tmp_path, f"a.{suffix}"), np.asarray(two_halves()))


def test_alpha_is_dropped_and_not_composed(tmp_path: Path) -> None:
    image = two_halves()
    image.putalpha(Image.new("L", image.size, 0))
    image.save(tmp_path / "a.png")

    np.testing.assert_array_equal(read(tmp_path, "a.png"), np.asarray(two_halves()))


def test_the_orientation_of_a_camera_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    two_halves().save(tmp_path / "a.png", exif=exif)

    np.testing.assert_array_equal(read(tmp_path, "a.png"), np.asarray(two_halves()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "I;16"])
def test_every_kind_of_pixel_becomes_rgb_of_eight_bits(mode: str, tmp_path: Path) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    if mode == "I;16":
        Image.fromarray(np.full((4, 8), 32768, np.uint16)).save(tmp_path / "a.png")
    else:
        two_halves().convert(mode).save(tmp_path / f"a.{suffix}")

    pixels = read(tmp_path, f"a.{suffix}")

    assert (pixels.dtype, pixels.shape) == (np.uint8, (4, 8, 3))
    if mode == "I;16":
        assert set(np.unique(pixels)) == {128}


def test_of_an_animation_the_first_picture_counts(tmp_path: Path) -> None:
    first, second = two_halves(), Image.new("RGB", (8, 4))
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)

    np.testing.assert_array_equal(read(tmp_path, "a.webp"), np.asarray(first))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_huge_image_travels_reduced_and_in_its_shape(suffix: str, tmp_path: Path) -> None:
    two_halves(6000, 3000).save(tmp_path / f"a.{suffix}")

    pixels = read(tmp_path, f"a.{suffix}")

    height, width, _ = pixels.shape
    assert 0.99 * MOST_PIXELS < height * width <= MOST_PIXELS
    assert abs(width / height - 2) < 0.01
    assert np.abs(pixels[height // 2, width // 4].astype(int) - LEFT_HALF).max() <= 3
    assert np.abs(pixels[height // 2, 3 * width // 4].astype(int) - RIGHT_HALF).max() <= 3


def test_unreadable_images_are_left_out_and_named_and_the_others_count(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-30])
    (tmp_path / "bomb.png").symlink_to(tmp_path / "inside.png")
    Image.new("1", (16_000, 16_000)).save(tmp_path / "inside.png")
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    two_halves().save(outside)
    (tmp_path / "link.png").symlink_to(outside)
    names = ["gone.png", "good.png", "cut.png", "bomb.png", "link.png"]

    found = read_images({"vace_ref_images": names, "first_frame_image": "gone.png", "seed": 1}, tmp_path)

    assert [image.shape for image in found.parameters.pop("vace_ref_images")] == [(4, 8, 3)]
    assert found.parameters == {"seed": 1}
    said = [(p["loc"], p["input"], p["msg"].partition(": ")[2]) for p in found.problems]
    remedy = "Upload it again, or choose another image"
    refs = ["vace_ref_images"]
    assert said == [
        (refs, "gone.png", f"it is not there any more. {remedy}"),
        (refs, "cut.png", f"it cannot be decoded (OSError); it may be damaged. {remedy}"),
        (refs, "bomb.png", f"it has more than 64 megapixels. {remedy}"),
        (refs, "link.png", f"it lies outside the assets directory. {remedy}"),
        (["first_frame_image"], "gone.png", f"it is not there any more. {remedy}"),
    ]
    assert {p["type"] for p in found.problems} == {"undecodable"}


def test_a_list_of_which_nothing_can_be_read_is_no_parameter(tmp_path: Path) -> None:
    found = read_images({"vace_ref_images": ["gone.png"], "last_frame_image": None}, tmp_path)

    assert (found.parameters, len(found.problems)) == ({}, 1)
    assert not names_images({"vace_ref_images": [], "last_frame_image": None, "seed": 1})


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "a.bmp")
    before = read(tmp_path, "a.bmp")

    two_halves(16, 8).save(tmp_path / "a.bmp")

    assert (before.shape, read(tmp_path, "a.bmp").shape) == ((4, 8, 3), (8, 16, 3))
