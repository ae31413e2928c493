"""Video encoders tuned for generated video: one libvpx thread without denoiser, x264's fastest preset.

aiortc's own settings suit a camera call: 0.5 Mbit/s, a denoiser, x264's default preset. What each costs
was measured at 576x320 to 832x480 (clients.md 3): VP8 without denoiser takes about a fifth less CPU than
stock, x264 ultrafast about a quarter of stock, and two libvpx threads are much slower whenever the cores are
busy. VP8's cpu-used stays at -6: from -7 on libvpx stops searching for motion, which at 2 Mbit/s and below
cost 8 to 16 dB on a panning 512x512 picture and saved no CPU that could be measured.
"""

import fractions
from collections.abc import Iterator

import av
from aiortc import rtcrtpsender
from aiortc.codecs import get_encoder as stock_encoder
from aiortc.codecs.base import Encoder
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.mediastreams import VIDEO_TIME_BASE, convert_timebase
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av.frame import Frame
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from gateway.config import Bitrate
from gateway.webrtc.aiortc_patches.members import require_members
from gateway.webrtc.aiortc_patches.sender import current_link
from gateway.webrtc.rate import RateLimits

require_members(rtcrtpsender, "get_encoder")
require_members(Vp8Encoder, "_packetize")
require_members(H264Encoder, "_packetize", "_split_bitstream")

_ASSUMED_FPS = 30


_limits = RateLimits(Bitrate())  # shared by all encoders of the process


def install_encoders(bitrate: Bitrate) -> None:
    """Make aiortc's senders use the encoders of this module, within `bitrate`. Call before any session."""
    _limits.bitrate = bitrate
    rtcrtpsender.get_encoder = _get_encoder  # type: ignore[attr-defined]


def _get_encoder(codec: RTCRtpCodecParameters) -> Encoder:
    tuned: dict[str, type[Encoder]] = {"video/vp8": TunedVp8Encoder, "video/h264": TunedH264Encoder}
    encoder = tuned.get(codec.mimeType.lower())
    return encoder() if encoder else stock_encoder(codec)


class _Tuned:
    """One libav encoder that is rebuilt when the picture size or the bitrate changes.

    narrow: options besides, for a network that is narrower than the configured floor.
    """

    def __init__(self, name: str, options: dict[str, str], narrow: dict[str, str]) -> None:
        self.link = current_link()
        self._name = name
        self._narrow = narrow
        self._reformatter = VideoReformatter()  # kept: a new one per picture costs more than the conversion
        self._options = options
        self._context: VideoCodecContext | None = None

    def encode(self, frame: av.VideoFrame, force_keyframe: bool) -> bytes:
        """Encode one picture; empty when it is left out, to keep to a low bitrate."""
        wanted = self.link.wanted(_limits, frame.width, frame.height)
        context = self._context
        if (
            context is None
            or (context.width, context.height) != (frame.width, frame.height)
            or self._is_off(wanted, context.bit_rate or 1)
        ):
            context = self._context = self._open(frame.width, frame.height, wanted)
        picture = self._reformatter.reformat(frame, format="yuv420p", threads=1)
        # A frame object may have been encoded before: its old picture type must not stick.
        picture.pict_type = PictureType.I if force_keyframe else PictureType.NONE
        data = b"".join(bytes(packet) for packet in context.encode(picture))
        self.link.sent(len(data))
        return data

    def _is_off(self, wanted: int, bitrate: int) -> bool:
        """It starts with a key frame: small steps are not worth one unless packets get lost."""
        least, most = (0.9, 1.25) if self.link.narrow else (0.8, 1.33)
        return not least < wanted / bitrate < most

    def _open(self, width: int, height: int, bitrate: int) -> VideoCodecContext:
        context = av.CodecContext.create(self._name, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height = width, height
        context.bit_rate = bitrate
        context.pix_fmt = "yuv420p"
        context.framerate = fractions.Fraction(_ASSUMED_FPS, 1)
        context.time_base = VIDEO_TIME_BASE
        context.gop_size = 3000
        context.thread_count = 1
        rate = str(bitrate)
        options = self._options | (self._narrow if self.link.narrow else {})
        context.options = {**options, "minrate": rate, "maxrate": rate, "bufsize": rate}
        return context


class _Informed:
    """What aiortc asks and tells an encoder about the bitrate is the link's to know."""

    _tuned: _Tuned

    @property
    def target_bitrate(self) -> int:
        return self._tuned.link.estimate or _limits.bitrate.default

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._tuned.link.report(bitrate)


class TunedVp8Encoder(_Informed, Vp8Encoder):
    """VP8 with constant bitrate, for pictures of any even size."""

    def __init__(self) -> None:
        super().__init__()
        self._tuned = _Tuned(
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
        )

    def encode(self, frame: Frame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        assert isinstance(frame, av.VideoFrame)
        data = self._tuned.encode(frame, force_keyframe)
        payloads = self._packetize(data, self.picture_id)
        if data:  # Chromium waits for a picture whose number it misses until the next key frame
            self.picture_id = (self.picture_id + 1) % (1 << 15)
        return payloads, _rtp_timestamp(frame)


class TunedH264Encoder(_Informed, H264Encoder):
    """Constrained baseline H.264 with x264's fastest preset."""

    def __init__(self) -> None:
        super().__init__()
        self._tuned = _Tuned(
            "libx264", {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"}, narrow={}
        )

    def encode(self, frame: Frame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        assert isinstance(frame, av.VideoFrame)
        return self._packetize(self.nal_units(frame, force_keyframe)), _rtp_timestamp(frame)

    def nal_units(self, frame: av.VideoFrame, force_keyframe: bool) -> Iterator[bytes]:
        """The encoded picture as NAL units without start codes."""
        return self._split_bitstream(self._tuned.encode(frame, force_keyframe))


def _rtp_timestamp(frame: av.VideoFrame) -> int:
    assert frame.pts is not None
    assert frame.time_base is not None
    return convert_timebase(frame.pts, frame.time_base, VIDEO_TIME_BASE)
