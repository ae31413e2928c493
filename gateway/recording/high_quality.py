"""An encoder of a recorder's own: better pictures than a live stream's, for more of the processor."""

from fractions import Fraction
from typing import Final

import av

from gateway.stream.encoding.packets import EncodedPicture
from gateway.stream.pictures.hub import Hub
from gateway.stream.pictures.picture import TIME_BASE, Picture
from gateway.threads import in_encoder_thread

_OPTIONS: Final = {"preset": "veryfast", "crf": "18", "tune": "zerolatency"}  # one packet for each picture
_LONGEST_GROUP: Final = 3000  # pictures; the recorder asks for key frames itself


class HighQualityEncoder:
    """Encodes a stream's pictures for one recorder; those that were shown before are left out."""

    def __init__(self, hub: Hub) -> None:
        self._sink = hub.join()
        self._context: av.VideoCodecContext | None = None
        self._wants_key_frame = False

    async def next_picture(self) -> EncodedPicture | None:
        """The next picture. None: no more. Raises PictureTooSmall."""
        while (picture := await self._sink.next_picture()) is not None:
            if picture.repeated and self._context is not None:
                continue
            packets = await in_encoder_thread(self._encode, picture)
            if packets:
                assert self._context is not None
                size = self._context.width, self._context.height
                return EncodedPicture(packets[0], picture.pts, size, picture.repeated)
        return None

    def want_key_frame(self, reason: str) -> None:
        self._wants_key_frame = True

    def close(self) -> None:
        self._sink.close()

    def _encode(self, picture: Picture) -> list["av.Packet[av.VideoStream]"]:
        frame = picture.frame()
        context = self._context
        if context is None or (context.width, context.height) != (frame.width, frame.height):
            context = self._context = _open(frame.width, frame.height)
        wanted, self._wants_key_frame = self._wants_key_frame, False
        kinds = av.video.frame.PictureType
        frame.pict_type = kinds.I if wanted else kinds.NONE
        return context.encode(frame)


def _open(width: int, height: int) -> av.VideoCodecContext:
    context = av.VideoCodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate = TIME_BASE, Fraction(30)
    context.gop_size = _LONGEST_GROUP
    context.options = dict(_OPTIONS)
    return context
