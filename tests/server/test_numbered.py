"""Frame numbers can be written into a picture and read back."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from aiortc import MediaStreamTrack
from av import VideoFrame
from av.video.codeccontext import VideoCodecContext

from tests.server.numbered import NumberedVideo, draw_number, read_number


@pytest.mark.parametrize("size", [(96, 128), (320, 576), (512, 512), (64, 64)], ids=str)
@pytest.mark.parametrize("number", [0, 1, 0x5555, 0xAAAA, 0xFFFF])
def test_number_is_read_back(size: tuple[int, int], number: int) -> None:
    image = np.full((*size, 3), 90, np.uint8)

    draw_number(image, number)

    assert read_number(image) == number


async def test_number_survives_vp8() -> None:
    track: MediaStreamTrack = NumberedVideo(128, 96, fps=100)
    encoder = VideoCodecContext.create("libvpx", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.bit_rate = 128, 96, "yuv420p", 250_000
    encoder.time_base = Fraction(1, 90_000)
    decoder: Any = VideoCodecContext.create("vp8", "r")
    read = []

    for _ in range(20):
        frame = await track.recv()
        assert isinstance(frame, VideoFrame)
        for packet in encoder.encode(frame.reformat(format="yuv420p")):
            read += [read_number(f.to_ndarray(format="gray")) for f in decoder.decode(packet)]

    assert read == list(range(len(read)))
    assert len(read) >= 10
