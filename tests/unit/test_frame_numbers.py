"""The benchmarks' frame numbers survive what the media path does to pictures."""

import numpy as np
import pytest
from aiortc.codecs.vpx import Vp8Decoder, Vp8Encoder, vp8_depayload
from aiortc.jitterbuffer import JitterFrame
from av import VideoFrame

from benchmarks.frame_numbers import MAX_NUMBER, NumberedVideo, draw_number, luma_of, read_number

NUMBERS = [0, 1, 2, 3, 1000, 1001, 1002, 0x55555, 0xAAAAA, MAX_NUMBER - 1, MAX_NUMBER]


def through_vp8(frames: list[VideoFrame], bitrate: int) -> list[VideoFrame]:
    encoder, decoder = Vp8Encoder(), Vp8Decoder()
    encoder.target_bitrate = bitrate
    decoded = []
    for frame in frames:
        payloads, timestamp = encoder.encode(frame)
        decoded += decoder.decode(JitterFrame(b"".join(map(vp8_depayload, payloads)), timestamp))
    return decoded


def through_rgb(frame: VideoFrame) -> VideoFrame:
    converted = VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"))
    converted.pts, converted.time_base = frame.pts, frame.time_base
    return converted


@pytest.mark.parametrize(("height", "width"), [(512, 512), (320, 576), (480, 832), (128, 128), (270, 362)])
def test_numbers_survive_two_vp8_generations_at_the_lowest_bitrate(height: int, width: int) -> None:
    video = NumberedVideo(height, width)
    frames = [video.frame(number, index / 30) for index, number in enumerate(NUMBERS)]

    first_hop = through_vp8(frames, bitrate=250_000)
    second_hop = through_vp8([through_rgb(frame) for frame in first_hop], bitrate=250_000)

    assert [read_number(luma_of(frame)) for frame in second_hop] == NUMBERS


def test_a_damaged_number_reads_as_none() -> None:
    luma = np.full((512, 512), 128, np.uint8)
    draw_number(luma, 12345)
    intact = read_number(luma)

    luma[:32, 32:64] = 255 - luma[:32, 32:64]

    assert intact == 12345
    assert read_number(luma) is None


def test_a_picture_without_a_number_reads_as_none() -> None:
    pictures = [np.full((512, 512), level, np.uint8) for level in (0, 128, 255)]

    assert [read_number(picture) for picture in pictures] == [None, None, None]


@pytest.mark.parametrize("number", [-1, MAX_NUMBER + 1])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    luma = np.zeros((512, 512), np.uint8)

    with pytest.raises(ValueError, match="is not within"):
        draw_number(luma, number)


def test_consecutive_frames_differ_in_texture() -> None:
    video = NumberedVideo(256, 256)

    below_band = [luma_of(video.frame(number, 0.0))[64:].astype(int) for number in (7, 8)]

    assert np.abs(below_band[0] - below_band[1]).mean() > 5
