"""Numbered pictures: a panning texture with the frame's number drawn in blocks that survive lossy coding.

A band of 2 x 16 blocks at the top holds 20 bits of number and 12 bits of checksum, most significant bit
first; white is 1. One block of a 512x512 picture is 32x32 pixels, two macroblocks wide, so that even the
coarsest quantiser keeps it black or white. A picture that is damaged all the same reads as None, not as a
wrong number.
"""

import zlib
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av import VideoFrame

ROWS, COLUMNS = 2, 16
NUMBER_BITS, CHECK_BITS = 20, 12
MAX_NUMBER = 2**NUMBER_BITS - 1  # 9.7 hours at 30 fps
BLACK, WHITE = 16, 235  # limited range of BT.601
GRAIN = 6  # range of the noise in a camera's picture, in levels of 8 bit
CLOCK_RATE = 90_000  # RTP clock of video in Hz

Luma = npt.NDArray[np.uint8]


def draw_number(luma: Luma, number: int) -> None:
    """Draw `number`, 0..MAX_NUMBER, into the picture's top. luma: uint8 [H, W], changed in place."""
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"Frame number {number} is not within 0..{MAX_NUMBER}.")
    word = number << CHECK_BITS | _check(number)
    bits = np.array([word >> (31 - i) & 1 for i in range(ROWS * COLUMNS)], np.bool_).reshape(
        ROWS, 1, COLUMNS, 1
    )
    _blocks(luma)[:] = np.where(bits, WHITE, BLACK)


def read_number(luma: Luma) -> int | None:
    """The number drawn into a picture, None when the checksum does not fit. luma: uint8 [H, W]."""
    blocks = _blocks(luma)
    margin = blocks.shape[1] // 4  # block edges ring and bleed
    centres = blocks[:, margin:-margin, :, margin:-margin]
    word = 0
    for bit in centres.mean(axis=(1, 3)).ravel() > (BLACK + WHITE) / 2:
        word = word << 1 | int(bit)
    number = word >> CHECK_BITS
    return number if word % (1 << CHECK_BITS) == _check(number) else None


def block_size(height: int, width: int) -> int:
    """Side of one block in pixels; even, so that it covers whole chroma samples."""
    side = min(width // COLUMNS, height // (4 * ROWS)) // 2 * 2
    if side < 8:
        raise ValueError(f"A frame number needs at least 128x64 pixels, not {width}x{height}.")
    return side


class NumberedVideo:
    """Makes the numbered pictures of one size: a panning texture with photographs' 1/f spectrum, and grain.

    Without a camera's grain, motion compensation would predict every frame and the encoder had little to do.
    """

    def __init__(self, height: int, width: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.height, self.width = height, width
        band = block_size(height, width) * ROWS
        self._luma = _periodic_texture(generator, height, width, contrast=40)
        self._chroma = [_periodic_texture(generator, height // 2, width // 2, contrast=12) for _ in "uv"]
        for plane in self._chroma:
            plane[: band // 2] = 128
        self._luma = np.minimum(self._luma, 255 - GRAIN)
        self._grain = generator.integers(0, GRAIN + 1, (2 * height, 2 * width), np.uint8)

    def frame(self, number: int, time_s: float) -> VideoFrame:
        """Picture `number` as a new yuv420p frame that is shown at `time_s` seconds."""
        frame = VideoFrame(self.width, self.height, "yuv420p")
        shift = 2 * number % self.width  # even, so that chroma moves by whole samples
        luma = luma_of(frame)
        top, left = (7 * number) % self.height, (11 * number) % self.width  # never the same grain in a row
        grain = self._grain[top : top + self.height, left : left + self.width]
        np.add(self._luma[:, shift : shift + self.width], grain, out=luma)
        draw_number(luma, number)
        for plane, texture in zip(frame.planes[1:], self._chroma, strict=True):
            _samples(plane)[:] = texture[:, shift // 2 : (shift + self.width) // 2]
        frame.pts = round(time_s * CLOCK_RATE)
        frame.time_base = Fraction(1, CLOCK_RATE)
        return frame


def luma_of(frame: VideoFrame) -> Luma:
    """uint8 [H, W] view of a yuv420p frame's brightness."""
    return _samples(frame.planes[0])


def spread(frame: VideoFrame) -> float:
    """How far a yuv420p picture is from one colour all over: the largest standard deviation of its planes.

    Of every fourth pixel, and of all planes: red is as bright as blue.
    """
    return max(
        float(_samples(plane)[::step, ::step].std())
        for plane, step in zip(frame.planes, (4, 2, 2), strict=True)
    )


def _samples(plane: Any) -> Luma:
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]  # lines are padded


def _check(number: int) -> int:
    return zlib.crc32(number.to_bytes(4, "big")) % (1 << CHECK_BITS)


def _blocks(luma: Luma) -> Luma:
    """View [ROWS, side, COLUMNS, side] of the band's blocks."""
    side = block_size(*luma.shape)
    row_stride, column_stride = luma.strides
    return np.lib.stride_tricks.as_strided(
        luma,
        (ROWS, side, COLUMNS, side),
        (side * row_stride, row_stride, side * column_stride, column_stride),
        writeable=luma.flags.writeable,
    )


def _periodic_texture(generator: np.random.Generator, height: int, width: int, contrast: float) -> Luma:
    """uint8 [height, 2 * width]: one period twice, so that every shift is a plain slice."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(generator.normal(size=(height, width))) / frequency).real
    scaled = 128 + contrast * (noise - noise.mean()) / noise.std()
    return np.tile(np.clip(scaled, BLACK, WHITE).astype(np.uint8), (1, 2))
