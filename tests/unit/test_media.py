"""Pictures of what users bring along: upright, and with nothing clipped."""

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from gateway.files import media
from gateway.files.media import MediaError

Colours = list[list[str]]

CORNERS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "blue": (40, 60, 220),
    "white": (235, 235, 235),
    "black": (20, 20, 20),
}
SHOWN: Colours = [["red", "blue"], ["white", "black"]]  # what the eight files below show, when held right

# (a, b, c, d) of the display matrix, and what is stored so that `SHOWN` comes out: by hand, not by our code.
MATRICES: dict[str, tuple[tuple[int, int, int, int], Colours]] = {
    "as it is": ((1, 0, 0, 1), [["red", "blue"], ["white", "black"]]),
    "half a turn": ((-1, 0, 0, -1), [["black", "white"], ["blue", "red"]]),
    "turned clockwise": ((0, 1, -1, 0), [["blue", "black"], ["red", "white"]]),
    "turned anticlockwise": ((0, -1, 1, 0), [["white", "red"], ["black", "blue"]]),
    "mirrored": ((-1, 0, 0, 1), [["blue", "red"], ["black", "white"]]),
    "upside down": ((1, 0, 0, -1), [["white", "black"], ["red", "blue"]]),
    "transposed": ((0, 1, 1, 0), [["red", "white"], ["blue", "black"]]),
    "transversed": ((0, -1, -1, 0), [["black", "blue"], ["white", "red"]]),
}


def corners(image: npt.NDArray[np.uint8]) -> Colours:
    """Which colours are at the corners of a picture [H, W, 3]."""

    def nearest(y: int, x: int) -> str:
        distance = {name: np.abs(image[y, x].astype(int) - colour).sum() for name, colour in CORNERS.items()}
        return min(distance, key=lambda name: distance[name])

    return [[nearest(y, x) for x in (8, -8)] for y in (8, -8)]


def painted(colours: Colours, width: int = 96, height: int = 64) -> npt.NDArray[np.uint8]:
    quarters = np.array([[CORNERS[name] for name in row] for row in colours], np.uint8)
    return quarters.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def film(path: Path, image: npt.NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> Path:
    """A film of one picture with that display matrix, which is written into its track header."""
    output = io.BytesIO()
    with av.open(output, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(output.getvalue())
    a, b, c, d = (number << 16 for number in matrix)
    begin = content.index(b"tkhd") + 4 + 40
    content[begin : begin + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def first_picture(path: Path) -> npt.NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return media.rgb_picture(next(container.decode(media.video_stream(container))))


def thumbnail(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(media.thumbnail(path, (0, 0)))).convert("RGB"))


@pytest.mark.parametrize("name", MATRICES)
def test_a_film_is_shown_as_it_was_held(tmp_path: Path, name: str) -> None:
    matrix, stored = MATRICES[name]
    path = film(tmp_path / "a.mp4", painted(stored), matrix)

    small, picture = thumbnail(path), first_picture(path)

    assert corners(small) == corners(picture) == SHOWN
    assert picture.shape == ((96, 64, 3) if matrix[0] == 0 else (64, 96, 3))
    assert picture.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_a_photograph_is_shown_as_it_was_held(tmp_path: Path, orientation: int, suffix: str) -> None:
    names = ["as it is", "mirrored", "half a turn", "upside down", "transposed", "turned clockwise"]
    name = [*names, "transversed", "turned anticlockwise"][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(painted(MATRICES[name][1])).save(path, exif=exif)

    assert corners(thumbnail(path)) == SHOWN
    assert corners(np.asarray(media.open_image(path))) == SHOWN


RAMP = np.linspace(0.0, 1.0, 64)[None, :].repeat(64, axis=0)


@pytest.mark.parametrize(
    "levels",
    [
        pytest.param((RAMP * 65535).astype(np.uint16), id="16 bits"),
        pytest.param((RAMP * 65535).astype(np.int32), id="integers"),
        pytest.param(RAMP.astype(np.float32), id="floats"),
        pytest.param((RAMP * 1000).astype(np.float32), id="floats of a wide range"),
        pytest.param((RAMP * 2 - 1).astype(np.float32), id="negative floats"),
    ],
)
def test_deep_grey_levels_are_scaled(levels: npt.NDArray[Any]) -> None:
    image = np.asarray(media.eight_bits(Image.fromarray(levels)))

    assert np.abs(image[..., 0] - RAMP * 255).max() <= 1
    assert (image == image[..., :1]).all()


def test_floats_that_are_no_numbers_are_no_obstacle() -> None:
    levels = RAMP.astype(np.float32)
    levels[0, :3] = np.nan, np.inf, -np.inf

    image = np.asarray(media.eight_bits(Image.fromarray(levels)))

    assert image[0, :3, 0].tolist() == [0, 255, 0]
    assert image[1:, -1, 0].tolist() == [255] * 63


def test_a_deep_png_has_a_thumbnail_that_is_not_white(tmp_path: Path) -> None:
    path = tmp_path / "depth.png"
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(path)

    assert 100 < thumbnail(path).mean() < 155


def test_an_animation_is_shown_by_its_first_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    first, second = Image.fromarray(painted(SHOWN)), Image.new("RGB", (96, 64), "green")
    first.save(path, save_all=True, append_images=[second], duration=100, lossless=True)

    assert corners(thumbnail(path)) == SHOWN


def test_a_palette_keeps_what_is_transparent(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("P", (64, 64), 1)
    image.putpalette([0, 0, 0, 220, 40, 40])
    image.paste(0, (0, 0, 32, 64))
    image.save(path, transparency=0)

    shown = Image.open(io.BytesIO(media.thumbnail(path, (0, 0))))

    assert shown.mode == "RGBA"
    assert [shown.getpixel((x, 32))[3] for x in (5, 60)] == [0, 255]  # type: ignore[index]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(path)

    red, green, blue = thumbnail(path)[32, 32]

    assert red > 200
    assert max(green, blue) < 60


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=48000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_a_video_file_with_sound_alone_is_explained(tmp_path: Path, suffix: str) -> None:
    path = sound(tmp_path / f"a.{suffix}")

    with pytest.raises(MediaError, match="only sound, no picture in it: choose a video"):
        media.check_decodable(path)
    with pytest.raises(MediaError, match="only sound"):
        media.thumbnail(path, (0, 0))
