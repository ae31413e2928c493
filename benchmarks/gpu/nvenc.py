"""Encoding a picture: NVENC beside x264 and libvpx, with the server's own settings where it has some.

    python -m benchmarks.gpu.nvenc

On a machine whose driver, or whose FFmpeg, offers no NVENC the row says so. CPU is that of this process.
"""

import statistics
import time
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from av import VideoFrame

from benchmarks.frame_numbers import CLOCK_RATE, NumberedVideo
from benchmarks.gpu.common import Result, Row, parse
from gateway.stream.encoding.codecs import VideoEncoder

PICTURES = ((288, 512), (480, 832))
BITRATE = 2_000_000

Encode = Callable[[VideoFrame], int]  # a picture -> bytes


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse(__doc__)
    result = Result("nvenc", options, precision="n/a")
    for height, width in ((128, 192),) if options.tiny else PICTURES:
        video = NumberedVideo(height, width)
        frames = [video.frame(i, i / 30) for i in range(10 if options.tiny else 150)]
        for name, make in ENCODERS.items():
            result.add({"encoder": name, "picture": f"{width}x{height}"} | measure(make, frames))
    result.finish()


def measure(make: Callable[[int, int], Encode], frames: list[VideoFrame]) -> Row:
    """Median times per picture, from RGB to bytes."""
    images = [frame.to_ndarray(format="rgb24") for frame in frames]
    try:
        encode = make(frames[0].height, frames[0].width)
        walls, cpus, total = [], [], 0
        for frame, image in zip(frames, images, strict=True):
            picture = VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24")
            picture.pts, picture.time_base = frame.pts, Fraction(1, CLOCK_RATE)
            wall, cpu = time.perf_counter(), time.process_time()
            total += encode(picture)
            walls.append(1000 * (time.perf_counter() - wall))
            cpus.append(1000 * (time.process_time() - cpu))
    except (av.FFmpegError, av.codec.codec.UnknownCodecError, OSError) as error:
        return {"error": str(error)[:120]}
    if total == 0:
        return {"error": "the encoder gave no bytes"}
    kbit = 8e-3 * total / (len(frames) / 30)
    return {"ms": statistics.median(walls), "cpu_ms": statistics.median(cpus), "kbit_per_s": round(kbit)}


def nvenc(height: int, width: int) -> Encode:
    context = av.CodecContext.create("h264_nvenc", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.framerate, context.time_base = Fraction(30), Fraction(1, CLOCK_RATE)
    context.bit_rate = BITRATE
    context.options = {"preset": "p1", "tune": "ull", "zerolatency": "1", "delay": "0", "rc": "cbr"}

    def encode(picture: VideoFrame) -> int:
        return sum(packet.size for packet in context.encode(picture.reformat(format="yuv420p")))

    return encode


def ours(codec: str) -> Callable[[int, int], Encode]:
    def make(height: int, width: int) -> Encode:
        encoder = VideoEncoder(codec)
        return lambda picture: sum(
            packet.size for packet in encoder.encode(picture.reformat(format="yuv420p"), BITRATE)
        )

    return make


ENCODERS: dict[str, Callable[[int, int], Encode]] = {
    "h264_nvenc": nvenc,
    "libx264": ours("H264"),
    "libvpx": ours("VP8"),
}

if __name__ == "__main__":
    main()
