"""Images that a chunk is told, read as pixels: Triton may run where the assets directory is not.

Pixels are what the reference takes: eight bits RGB, alpha is dropped and not composed, and the orientation
that a camera writes beside them is not applied (vace.md 3.2). The pipeline fits them to its picture size.
"""

import logging
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from gateway.errors import Problem
from gateway.files import media
from gateway.files.media import MediaError, Picture
from gateway.http.paths import PathNotAllowedError, resolve_inside
from gateway.http.validation import quoted
from streaming.triton.images import IMAGE_KEYS

logger = logging.getLogger(__name__)

# Of what travels: a larger image is reduced here, by averages. Pictures have a tenth of that.
MOST_PIXELS: Final = 1 << 22
_REMEMBERED: Final = 4  # images: a chunk that is begun again has the same ones

_one_at_a_time = threading.Lock()  # an image of 64 megapixels takes 250 MB for a moment


@dataclass(frozen=True, slots=True)
class PixelParameters:
    """parameters: of a chunk, with images as uint8 [H, W, 3] RGB. problems: images that could not be read."""

    parameters: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)


def names_images(parameters: Mapping[str, Any]) -> bool:
    """Whether there is anything to read."""
    return any(parameters.get(key) for key in IMAGE_KEYS)


def read_images(parameters: Mapping[str, Any], directory: Path) -> PixelParameters:
    """Replace the paths among a chunk's parameters, which are relative to `directory`, by pixels.

    An image that cannot be read is left out and named; the others count. Blocks: for a thread.
    """
    read = PixelParameters(dict(parameters))
    for key in IMAGE_KEYS:
        value = read.parameters.pop(key, None)
        if isinstance(value, str):
            value, is_list = [value], False
        else:
            value, is_list = value or [], True
        pictures = list(_read_all(key, value, directory, read.problems))
        if pictures:
            read.parameters[key] = pictures if is_list else pictures[0]
    return read


def _read_all(key: str, names: Iterable[str], directory: Path, problems: list[Problem]) -> Iterable[Picture]:
    for name in names:
        try:
            yield _read(directory, name)
        except MediaError as error:
            text = f"'{quoted(name, 200)}' is left out: {error}. Upload it again, or choose another image"
            logger.warning("Parameter %s: %s", key, text)
            problems.append(Problem(loc=[key], msg=text, type="undecodable", input=name))


def _read(directory: Path, name: str) -> Picture:
    """Raises MediaError, also for a file that is gone or has become a link to elsewhere."""
    try:
        path = resolve_inside(directory, name)
        status = path.stat()
    except PathNotAllowedError as error:
        raise MediaError("it lies outside the assets directory") from error
    except OSError as error:
        raise MediaError("it is not there any more") from error
    return pixels(path, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=_REMEMBERED)
def pixels(path: Path, version: tuple[int, int]) -> Picture:
    """An image as uint8 [H, W, 3] RGB of at most `MOST_PIXELS`. version: anything that changes with the file.

    Raises MediaError.
    """
    with _one_at_a_time:
        try:
            with media.stored_image(path) as image:
                smaller = _reduced_size(*image.size)
                image.draft("RGB", smaller)
                image.load()
                picture = media.eight_bits(image).convert("RGB")
        except MediaError:
            raise
        except Exception as error:  # decoders raise whatever a broken file makes them run into
            raise media.damaged(error) from error
        if picture.size != smaller:
            picture = picture.resize(smaller, Image.Resampling.BOX)
        array: Picture = np.asarray(picture)
        array.setflags(write=False)  # it is shared
        return array


def _reduced_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the same shape, of at most `MOST_PIXELS`."""
    share = math.sqrt(min(1.0, MOST_PIXELS / (width * height)))
    return (width, height) if share == 1.0 else (max(1, int(width * share)), max(1, int(height * share)))
