"""Every picture that a page decoded, as thumbnails, and how alike pictures are."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from playwright.async_api import Page

from tests.server.peer import until

# Thumbnails of one picture, encoded twice, differ by about 2 levels; those of two prompts by about 9, of two
# seeds, or of two moments of a stream, by about 40 (measured with the engines of tests/engines.py).
SAME = 4.0


@dataclass(frozen=True)
class Pictures:
    """Some pictures of one stream, in their order.

    thumbnails: int16 [N, 16, 20, 3] RGB. sizes: (width, height) in pixels that occur.
    """

    thumbnails: npt.NDArray[np.int16]
    sizes: frozenset[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.thumbnails)

    def __getitem__(self, part: slice) -> "Pictures":
        return Pictures(self.thumbnails[part], self.sizes)


async def position(page: Page) -> int:
    """How many pictures the newest stream has had."""
    return int(await page.evaluate("recorder.streams.at(-1)?.length ?? 0"))


async def recorded(page: Page, since: int = 0) -> Pictures:
    """The pictures of the newest stream from number `since` on."""
    pictures = await page.evaluate("since => recorder.streams.at(-1).slice(since)", since)
    pixels = np.array([picture["pixels"] for picture in pictures], np.int16)
    sizes = frozenset((picture["width"], picture["height"]) for picture in pictures)
    return Pictures(pixels.reshape(-1, 16, 20, 4)[..., :3], sizes)


async def more(page: Page, count: int, since: int | None = None, within_s: float = 180.0) -> Pictures:
    """Wait for `count` pictures of the newest stream after number `since` (None: after now), return them."""
    first = await position(page) if since is None else since
    await page.wait_for_function(
        "end => recorder.streams.at(-1)?.length >= end", arg=first + count, timeout=within_s * 1000
    )
    return (await recorded(page, first))[:count]


def unlike(some: Pictures, others: Pictures) -> float:
    """Median over pairs of pictures of their mean absolute difference, in levels."""
    count = min(len(some), len(others))
    assert count, "no pictures to compare"
    difference = np.abs(some.thumbnails[:count] - others.thumbnails[:count])
    return float(np.median(difference.mean(axis=(1, 2, 3))))


def nearest(some: Pictures, others: Pictures) -> npt.NDArray[np.float64]:
    """For each of `some` the mean absolute difference to the most similar of `others`, in levels."""
    return np.array(
        [np.abs(others.thumbnails - picture).mean(axis=(1, 2, 3)).min() for picture in some.thumbnails]
    )


async def begins_again(page: Page, beginning: Pictures, since: int, within_s: float = 180.0) -> None:
    """Wait until the newest stream, from picture number `since` on, shows `beginning`."""
    place, closest = since, float("inf")

    async def seen() -> bool:
        nonlocal place, closest
        pictures = await recorded(page, place)
        starts = range(len(pictures) - len(beginning) + 1)
        found = [unlike(pictures[start : start + len(beginning)], beginning) for start in starts]
        place, closest = place + len(found), min([closest, *found])
        return closest < SAME

    try:
        await until(seen, within_s, "the pictures of a beginning")
    except AssertionError as error:
        raise AssertionError(
            f"{error}; of {place - since} places the nearest differs by {closest:.1f}"
        ) from error
