"""Images, videos and sounds that users bring along: their kinds by suffix, and whether they can be decoded.

Files are decoded only with the decoder that belongs to their suffix. FFmpeg, left to guess, would also take a
playlist that names other files and addresses.
"""

import io
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import av
from PIL import Image, ImageOps

from streaming.errors import WanstreamError

Kind = Literal["image", "video", "audio"]

MAX_PIXELS: Final = 64_000_000
_THUMBNAIL_PIXELS: Final = 256

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
            _open_image(path)
        else:
            _first_frame(path)
    except MediaError:
        raise
    except Exception as error:  # as above
        raise MediaError(f"it cannot be decoded ({type(error).__name__})") from error


@lru_cache(maxsize=256)
def thumbnail(path: Path, version: tuple[int, int]) -> bytes:
    """A WebP picture of at most 256x256 pixels. version: anything that changes with the file.

    Raises MediaError.
    """
    try:
        if kind_of(path) == "image":
            picture = _open_image(path, draft=True)
        else:
            frame = _first_frame(path)
            if not isinstance(frame, av.VideoFrame):
                raise MediaError("there is no picture in it")
            picture = frame.to_image()  # type: ignore[no-untyped-call]
        picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
        output = io.BytesIO()
        has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
        picture.convert("RGBA" if has_alpha else "RGB").save(output, "WEBP", quality=80)
    except MediaError:
        raise
    except Exception as error:  # as above
        raise MediaError(f"it cannot be decoded ({type(error).__name__})") from error
    return output.getvalue()


def _open_image(path: Path, *, draft: bool = False) -> Image.Image:
    """draft: at a lower resolution where that is faster, upright."""
    with Image.open(path, formats=[_FORMATS[path.suffix.lower()][1]]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise MediaError(f"it has more than {MAX_PIXELS // 1_000_000} megapixels")
        if draft:
            image.draft("RGB", (2 * _THUMBNAIL_PIXELS, 2 * _THUMBNAIL_PIXELS))
        image.load()
        return ImageOps.exif_transpose(image) if draft else image


def _first_frame(path: Path) -> av.VideoFrame | av.AudioFrame:
    with av.open(str(path), format=_FORMATS[path.suffix.lower()][1]) as container:
        if kind_of(path) == "audio":
            return next(container.decode(container.streams.audio[0]))
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise MediaError(f"its frames have more than {MAX_PIXELS // 1_000_000} megapixels")
        stream.codec_context.thread_count = 1  # one frame is not worth a thread per core
        return next(container.decode(stream))
