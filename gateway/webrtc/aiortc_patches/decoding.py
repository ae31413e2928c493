"""The decoder of a peer's video: nothing that is not wanted or too large, and all fitted to the pipeline.

aiortc's own decodes every picture of any size into a queue without end. Here the thread that decodes also
shrinks, so that what waits for a chunk is small, and a peer cannot fill the memory with a few kilobytes of
huge pictures.
"""

import asyncio
import logging
import queue
import time
from collections.abc import Callable, Mapping
from typing import Any

import av
from aiortc import RTCRtpReceiver, rtcrtpreceiver
from aiortc.codecs import get_decoder
from aiortc.codecs.base import Decoder
from aiortc.codecs.h264 import H264Decoder
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpreceiver import RemoteStreamTrack
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter

from gateway.stream.pictures.video_input import MAX_PIXELS, Feed, fit
from gateway.webrtc.aiortc_patches.members import require_members

logger = logging.getLogger(__name__)

require_members(rtcrtpreceiver, "decoder_worker")
require_members(RTCRtpReceiver, "_send_rtcp_pli")
require_members(RemoteStreamTrack("video"), "_queue")

_MAX_LAG = 30  # pictures that wait for a slow decoder before it skips to the next key frame
_KEY_FRAME_WAIT_S = 3.0  # then whatever comes is decoded: some senders refresh without key frames
_ASK_AGAIN_S = 0.5
_GIVE_UP_S = 10.0  # without one decoded picture, although some arrive
_H264_IDR = 5

_stock_worker = rtcrtpreceiver.decoder_worker


class DecodedVideo(asyncio.Queue[Any]):
    """Where the decoder of one track leaves its pictures, in place of the queue of aiortc's track.

    Nothing waits in it: pictures go straight to `feed`, into the ring of the stream whose source this is.
    """

    def __init__(self, on_refused: Callable[[str], None], on_end: Callable[[str | None], None]) -> None:
        """on_refused(text): a picture is too large. on_end(text): no more will come, or why they cannot.

        Both are called on the event loop.
        """
        super().__init__()
        self.feed: Feed | None = None  # before it starts, pictures are left
        self.on_refused = on_refused
        self.on_end = on_end
        self.stopped = False
        self._receiver: RTCRtpReceiver | None = None

    def start(self, feed: Feed) -> None:
        self.feed = feed

    def attach(self, receiver: RTCRtpReceiver) -> None:
        """Take the pictures of a receiver that has not begun yet."""
        assert isinstance(receiver.track, RemoteStreamTrack)
        self._receiver = receiver
        receiver.track._queue = self

    @property
    def info(self) -> Mapping[str, Any]:
        return {"kind": "camera", "name": ""}

    def stop(self) -> None:
        """Let no more pictures through; what still arrives is not even decoded."""
        self.stopped = True

    async def ask_key_frame(self) -> None:
        """Send a picture loss indication (RFC 4585 6.3.1) to whoever sends to the receiver."""
        if self._receiver is not None:
            for source in self._receiver.getSynchronizationSources():
                await self._receiver._send_rtcp_pli(source.source)


def install_decoder() -> None:
    """Make aiortc's receivers decode with this module. Call before any session."""
    rtcrtpreceiver.decoder_worker = _decoder_worker  # type: ignore[assignment]


def _decoder_worker(
    loop: asyncio.AbstractEventLoop,
    input_q: "queue.Queue[tuple[RTCRtpCodecParameters, JitterFrame] | None]",
    output_q: "asyncio.Queue[Any]",
    *more: Any,
) -> None:
    """The body of a receiver's thread; the arguments are aiortc's, of which newer versions have more."""
    if not isinstance(output_q, DecodedVideo):
        _stock_worker(loop, input_q, output_q, *more)
        return
    decoder = VideoDecoder(
        output_q,
        loop.call_soon_threadsafe,
        lambda: asyncio.run_coroutine_threadsafe(output_q.ask_key_frame(), loop),
    )
    failure: str | None = None
    try:
        while (task := input_q.get()) is not None:
            decoder.take(*task, behind=input_q.qsize())
    except DecodingFailed as failed:
        failure = str(failed)
    except Exception:  # thread boundary: the peer is told, the trace is in the log
        logger.exception("Decoding a peer's video failed")
        failure = "The camera's video could not be decoded: internal error, see the server's log"
    if not loop.is_closed():
        loop.call_soon_threadsafe(output_q.on_end, failure)


class DecodingFailed(Exception):
    """Nothing that arrives can be decoded; the text is for the user."""


class VideoDecoder:
    """Turns one peer's encoded pictures into what the loaded pipeline takes. Lives in one thread."""

    def __init__(
        self,
        target: DecodedVideo,
        call: Callable[..., Any],
        ask_key_frame: Callable[[], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """call(function, *arguments): run it on the event loop. ask_key_frame: ask the peer for one."""
        self._target = target
        assert target.feed is not None, "a source is started before its first picture"
        self._feed = target.feed
        self._call = call
        self._ask = ask_key_frame
        self._clock = clock
        self._codec = ""
        self._decoder: Decoder | None = None
        self._reformatter = VideoReformatter()  # kept: a new one per frame costs more than the conversion
        self._asked = float("-inf")
        self._waits_since: float | None = None  # for a key frame
        self._fails_since: float | None = None
        self._too_large = False

    def take(self, codec: RTCRtpCodecParameters, encoded: JitterFrame, behind: int = 0) -> None:
        """Decode a picture and pass it on, or leave it. behind: how many are waiting after it.

        Raises DecodingFailed when it has been of no use for a long time.
        """
        if self._target.stopped or not self._feed.wanted:
            self._decoder = None  # its pictures are the largest part of a stream's memory
            self._fails_since = None
            if not self._target.stopped:
                self._call(self._feed.skip)
            return
        if codec.name != self._codec:
            self._codec, self._decoder = codec.name, None
        if self._decoder is None or behind > _MAX_LAG:
            self._waits_since = self._clock() if self._waits_since is None else self._waits_since
            self._decoder = self._decoder or _open(codec)
        if self._refuses(encoded.data) or self._waits_for_key_frame(encoded.data):
            return
        self._decode(self._decoder, encoded)

    def _waits_for_key_frame(self, data: bytes) -> bool:
        if self._waits_since is None:
            return False
        if is_key_frame(self._codec, data) or self._clock() - self._waits_since > _KEY_FRAME_WAIT_S:
            self._waits_since = None
            return False
        self._ask_for_key_frame()
        return True

    def _ask_for_key_frame(self) -> None:
        if self._clock() - self._asked >= _ASK_AGAIN_S:
            self._asked = self._clock()
            self._ask()

    def _refuses(self, data: bytes) -> bool:
        """Whether a picture is too large, or builds on one that is. Asked before libvpx allocates memory."""
        size = vp8_size(data) if self._codec == "VP8" else None
        if size is not None:
            self._too_large = size[0] * size[1] > MAX_PIXELS
            if self._too_large:
                self._refuse(*size)
        return self._too_large and self._codec == "VP8"

    def _refuse(self, width: int, height: int) -> None:
        self._fails_since = None
        self._call(self._feed.skip)
        self._call(
            self._target.on_refused,
            f"Pictures of {width}x{height} pixels are too large: at most {MAX_PIXELS / 1e6:.1f} million "
            "can be taken, as in 2560x1600. Choose a smaller picture size for the camera.",
        )

    def _decode(self, decoder: Any, encoded: JitterFrame) -> None:
        try:
            frames = decoder.decode(encoded)
        except av.FFmpegError as error:
            context = decoder.codec
            if context.width * context.height > MAX_PIXELS:
                self._refuse(context.width, context.height)
            else:
                self._note_failure(error)
            return
        for frame in frames:
            self._fails_since = None
            size = self._feed.size
            self._call(self._feed.push, fit(frame, size, self._reformatter), size)

    def _note_failure(self, error: av.FFmpegError) -> None:
        logger.debug("A picture could not be decoded: %s", error)
        self._ask_for_key_frame()
        self._fails_since = self._clock() if self._fails_since is None else self._fails_since
        if self._clock() - self._fails_since > _GIVE_UP_S:
            raise DecodingFailed(
                f"The camera's video cannot be decoded: no picture in {self._codec} was valid for "
                f"{_GIVE_UP_S:.0f} s. Start it again, or choose another video codec for it."
            )


def _open(codec: RTCRtpCodecParameters) -> Decoder:
    decoder = get_decoder(codec)
    if isinstance(decoder, H264Decoder):
        assert isinstance(decoder.codec, VideoCodecContext)
        decoder.codec.options = {"max_pixels": str(MAX_PIXELS)}
    return decoder


def is_key_frame(codec: str, data: bytes) -> bool:
    """Whether an encoded picture of VP8 or H264 (with start codes) can be decoded without earlier ones."""
    if codec == "VP8":
        return bool(data) and not data[0] & 1
    position = data.find(b"\0\0\1")
    while 0 <= position < len(data) - 3:
        if data[position + 3] & 0x1F == _H264_IDR:
            return True
        position = data.find(b"\0\0\1", position + 3)
    return False


def vp8_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a VP8 key frame (RFC 6386 9.1); None for other pictures."""
    if len(data) < 10 or data[0] & 1 or data[3:6] != b"\x9d\x01\x2a":
        return None
    return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
