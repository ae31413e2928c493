"""Images, videos and sounds that users bring along: their kinds by suffix, decoding, pictures of them.

Files are decoded only with the decoder that belongs to their suffix. FFmpeg, left to guess, would also take a
playlist that names other files and addresses.

Whoever shows pixels takes `open_image` for images, `video_stream` and `rgb_picture` for videos: they come
upright, as cameras and phones mean them, and in eight bits with nothing clipped. What a model is told is in
`reference_images`.
"""

import io
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideData
from PIL import Image, ImageOps

from streaming.errors import WanstreamError

Kind = Literal["image", "video", "audio"]
Picture = npt.NDArray[np.uint8]  # [H, W, 3] RGB

MAX_PIXELS: Final = 64_000_000
_THUMBNAIL_PIXELS: Final = 256
_MATRIX: Final = struct.Struct("=9i")  # of FFmpeg's side data

# Suffix: content type, and Pillow's or FFmpeg's name of the format.
_FORMATS: Final[dict[str, tuple[str, str]]] = {
    ".png": ("image/png", "PNG"),
    ".jpg": ("image/jpeg", "JPEG"),
    ".jpeg": ("image/jpeg", "JPEG"),
    ".webp": ("image/webp", "WEBP"),
    ".bmp": ("image/bmp", "BMP"),
    ".mp4": ("video/mp4", "mov"),
    ".avi": ("video/x-msvideo", "avi"),
    ".mov": ("video/quicktime", "mov"),
    ".mkv": ("video/x-matroska", "matroska"),
    ".webm": ("video/webm", "matroska"),
    ".wav": ("audio/wav", "wav"),
    ".mp3": ("audio/mpeg", "mp3"),
    ".flac": ("audio/flac", "flac"),
    ".ogg": ("audio/ogg", "ogg"),
}
SUFFIXES: Final = tuple(sorted(_FORMATS))  # lower case
_VIDEO_SUFFIXES: Final = tuple(s for s in SUFFIXES if _FORMATS[s][0].startswith("video/"))
IMAGE_SUFFIXES: Final = frozenset(s for s, (kind, _) in _FORMATS.items() if kind.startswith("image/"))


class MediaError(WanstreamError):
    """A file that cannot be decoded, and why."""


def content_type(path: Path) -> str | None:
    """Content type by suffix; None: not a media file."""
    known = _FORMATS.get(path.suffix.lower())
    return known[0] if known else None


def kind_of(path: Path) -> Kind | None:
    """What a file is by its suffix; None: not a media file."""
    match (content_type(path) or "").partition("/")[0]:
        case "image":
            return "image"
        case "video":
            return "video"
        case "audio":
            return "audio"
    return None


def header_matches(path: Path, head: bytes) -> bool:
    """Whether an image's first 12 bytes are those of the format of its suffix; true for other kinds."""
    match _FORMATS[path.suffix.lower()][1]:
        case "PNG":
            return head.startswith(b"\x89PNG\r\n\x1a\n")
        case "JPEG":
            return head.startswith(b"\xff\xd8\xff")
        case "WEBP":
            return head[:4] == b"RIFF" and head[8:12] == b"WEBP"
        case "BMP":
            return head.startswith(b"BM")
    return True


def image_pixels(path: Path) -> int | None:
    """Width times height as the header says, nothing is decoded; None: the header is broken."""
    try:
        with Image.open(path, formats=[_FORMATS[path.suffix.lower()][1]]) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except Exception:  # decoders raise whatever a broken file makes them run into
        return None


def check_decodable(path: Path) -> None:
    """Decode an image, or the first frame of a video or sound. Raises MediaError."""
    try:
        if kind_of(path) == "image":
            open_image(path)
        else:
            _first_frame(path)
    except MediaError:
        raise
    except Exception as error:  # as above
        raise damaged(error) from error


@lru_cache(maxsize=256)
def thumbnail(path: Path, version: tuple[int, int]) -> bytes:
    """A WebP picture of at most 256x256 pixels. version: anything that changes with the file.

    Raises MediaError.
    """
    try:
        if kind_of(path) == "image":
            picture = open_image(path, draft=True)
        else:
            frame = _first_frame(path)
            if not isinstance(frame, av.VideoFrame):
                raise MediaError("there is no picture in it")
            picture = Image.fromarray(rgb_picture(frame))
        picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
        output = io.BytesIO()
        picture.save(output, "WEBP", quality=80)
    except MediaError:
        raise
    except Exception as error:  # as above
        raise damaged(error) from error
    return output.getvalue()


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The film in a file; a cover picture is none. Raises MediaError when there is only sound."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    what = "only sound, no picture" if container.streams.audio else "no picture"
    raise MediaError(f"there is {what} in it: choose a video")


def open_video(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """A video file for reading, and the film in it. Close the former.

    Raises MediaError, and whatever a broken file makes a decoder run into.
    """
    if kind_of(path) != "video":
        raise MediaError("it is no video: choose one of " + ", ".join(_VIDEO_SUFFIXES))
    container = av.open(str(path), format=_FORMATS[path.suffix.lower()][1])
    try:
        return container, video_stream(container)
    except MediaError:
        container.close()
        raise


def rgb_picture(frame: av.VideoFrame) -> Picture:
    """A decoded frame as it is to be shown: turned and mirrored by its display matrix.

    Phones film in the sensor's position and write beside each film how to hold it.
    """
    picture = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return _as_shown(picture, bytes(matrix)) if isinstance(matrix, SideData) else picture


def _as_shown(picture: Picture, display_matrix: bytes) -> Picture:
    """The matrix a b u c d v x y w moves (x, y) to (a x + c y, b x + d y); only quarter turns are made."""
    a, b, _, c, d = _MATRIX.unpack(display_matrix[: _MATRIX.size])[:5]
    across, down = a, d
    if abs(b) > abs(a):
        picture = picture.transpose(1, 0, 2)
        across, down = c, b
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def open_image(path: Path, *, draft: bool = False) -> Image.Image:
    """An image, or the first picture of an animation: upright, as RGB or RGBA.

    draft: at a lower resolution where that is faster. Raises MediaError, and whatever a broken file makes a
    decoder run into.
    """
    with stored_image(path) as image:
        if draft:
            image.draft("RGB", (2 * _THUMBNAIL_PIXELS, 2 * _THUMBNAIL_PIXELS))
        image.load()
        return eight_bits(ImageOps.exif_transpose(image))


def stored_image(path: Path) -> Image.Image:
    """An image as it is stored, opened and not decoded yet. Close it.

    Raises MediaError, and whatever a broken file makes a decoder run into.
    """
    too_large = MediaError(f"it has more than {MAX_PIXELS // 1_000_000} megapixels")
    try:
        image = Image.open(path, formats=[_FORMATS[path.suffix.lower()][1]])
    except Image.DecompressionBombError as error:  # far more
        raise too_large from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise too_large
    return image


def eight_bits(image: Image.Image) -> Image.Image:
    """An image as RGB or RGBA, deep grey levels scaled: Pillow clips them, and nearly all would be white."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scaled(np.asarray(image))).convert("RGB")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def _scaled(levels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Grey levels [H, W], integers of 16 bits or floats from 0 to 1; a wider range is taken as it is."""
    is_float = np.issubdtype(levels.dtype, np.floating)
    ranges = [_range(row) for row in levels]
    low = min(0.0, *(low for low, _ in ranges))
    high = max(1.0 if is_float else 65535.0, *(high for _, high in ranges))
    scaled = np.empty(levels.shape, np.uint8)
    for target, row in zip(
        scaled, levels, strict=True
    ):  # by rows: floats of 64 megapixels are half a gigabyte
        share = (np.nan_to_num(row.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / (high - low)
        target[:] = np.round(share * 255.0)
    return scaled


def _range(row: npt.NDArray[Any]) -> tuple[float, float]:
    finite = row[np.isfinite(row)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _first_frame(path: Path) -> av.VideoFrame | av.AudioFrame:
    with av.open(str(path), format=_FORMATS[path.suffix.lower()][1]) as container:
        if kind_of(path) == "audio":
            if not container.streams.audio:
                raise MediaError("there is no sound in it")
            return next(container.decode(container.streams.audio[0]))
        stream = video_stream(container)
        if stream.width * stream.height > MAX_PIXELS:
            raise MediaError(f"its frames have more than {MAX_PIXELS // 1_000_000} megapixels")
        stream.codec_context.thread_count = 1  # one frame is not worth a thread per core
        return next(container.decode(stream))


def damaged(error: Exception) -> MediaError:
    """What to say of a file whose decoder failed with `error`."""
    return MediaError(f"it cannot be decoded ({type(error).__name__}); it may be damaged")
