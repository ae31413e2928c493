"""Video encoders tuned for generated video: one libvpx thread without denoiser, x264's fastest preset.

Settings of a camera call (0.5 Mbit/s, a denoiser, x264's default preset) suit no generated video. What each
costs was measured at 576x320 to 832x480 (clients.md 3): VP8 without denoiser takes about a fifth less CPU
than with it, x264 ultrafast about a quarter of the default, and two libvpx threads are much slower whenever
the cores are busy. VP8's cpu-used stays at -6: from -7 on libvpx stops searching for motion, which at
2 Mbit/s and below cost 8 to 16 dB on a panning 512x512 picture and saved no CPU that could be measured.
"""

import fractions
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from gateway.stream.pictures.picture import TIME_BASE

if TYPE_CHECKING:
    VideoPacket = av.Packet[av.VideoStream]
else:  # the class takes no subscript
    VideoPacket = av.Packet

_ASSUMED_FPS: Final = 30
_LONGEST_GROUP: Final = 3000  # pictures from one key frame to the next, unless somebody asks
# Shares of an encoder's bitrate. Beyond them another one is made, which begins with a key frame: small steps
# are not worth it unless packets get lost.
_NEAR: Final = (0.8, 1.33)
_NEAR_NARROW: Final = (0.9, 1.25)


@dataclass(frozen=True, slots=True)
class _Library:
    """Settings of an encoder library. narrow: besides, for a network below the configured floor."""

    name: str
    options: Mapping[str, str]
    narrow: Mapping[str, str] = field(default_factory=dict)


CODECS: Final[Mapping[str, _Library]] = MappingProxyType(
    {
        "VP8": _Library(
            "libvpx",
            {
                "cpu-used": "-6",
                "deadline": "realtime",
                "lag-in-frames": "0",
                "max-intra-rate": "300",  # a key frame of three frames' size: larger ones are lost in bursts
                "noise-sensitivity": "0",
                "overshoot-pct": "15",
                "undershoot-pct": "100",
                "partitions": "0",
                "static-thresh": "1",
                "qmin": "2",
                "qmax": "56",
            },
            narrow={"drop-threshold": "30", "qmax": "63"},  # better fewer pictures than late ones
        ),
        # Constrained baseline; key frames carry their parameter sets.
        "H264": _Library("libx264", {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"}),
    }
)


class VideoEncoder:
    """One libav encoder, made anew when the picture size or the bitrate changes. For one thread at a time.

    codec: a name of `CODECS`.
    """

    def __init__(self, codec: str) -> None:
        self._library = CODECS[codec]
        self._context: VideoCodecContext | None = None

    def encode(
        self, frame: av.VideoFrame, bitrate: int, *, key_frame: bool = False, narrow: bool = False
    ) -> list[VideoPacket]:
        """Encode one YUV 4:2:0 picture; empty when it is left out, to keep to a low bitrate.

        narrow: the network carries less than the configured floor.
        """
        context = self._context
        if (
            context is None
            or (context.width, context.height) != (frame.width, frame.height)
            or not _near(bitrate / (context.bit_rate or 1), narrow)
        ):
            context = self._context = self._open(frame.width, frame.height, bitrate, narrow)
        frame.pict_type = PictureType.I if key_frame else PictureType.NONE
        return context.encode(frame)

    def _open(self, width: int, height: int, bitrate: int, narrow: bool) -> VideoCodecContext:
        context = av.CodecContext.create(self._library.name, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height = width, height
        context.bit_rate = bitrate
        context.pix_fmt = "yuv420p"
        context.framerate = fractions.Fraction(_ASSUMED_FPS, 1)
        context.time_base = TIME_BASE
        context.gop_size = _LONGEST_GROUP
        context.thread_count = 1
        rate = str(bitrate)
        options = {**self._library.options, **(self._library.narrow if narrow else {})}
        context.options = {**options, "minrate": rate, "maxrate": rate, "bufsize": rate}
        return context


def _near(share: float, narrow: bool) -> bool:
    least, most = _NEAR_NARROW if narrow else _NEAR
    return least < share < most
