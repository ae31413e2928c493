"""WHIP: programs that send a stream its video (RFC 9725)."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from aiortc import RTCConfiguration, RTCRtpTransceiver

from gateway.errors import ApiError, Problem
from gateway.pipelines.state import Pipelines
from gateway.stream.parts import parameter_error
from gateway.stream.pictures.video_input import Feed
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams
from gateway.webrtc.aiortc_patches.decoding import DecodedVideo
from gateway.webrtc.ice.servers import IceServers
from gateway.webrtc.signalling import Offer
from gateway.whip.offers import read_publisher_offer
from gateway.whip.session import Session, Sessions

logger = logging.getLogger(__name__)

_MAX_REFUSALS: Final = 5


class Publisher(Session):
    """A publisher's connection: it holds its stream, and is its source."""

    def __init__(
        self, stream: Stream, offer: Offer, configuration: RTCConfiguration, connect_timeout_s: float
    ) -> None:
        super().__init__("whip", stream.id, offer, configuration, connect_timeout_s)
        self.stream = stream
        self._camera = offer.camera
        self._video = DecodedVideo(self._on_too_large, self._on_video_ended)
        self._refused: set[str] = set()  # what was said of pictures that are too large
        stream.hold(self, lambda: self.connection.connected)

    @property
    def info(self) -> Mapping[str, Any]:
        return {**self._video.info, "kind": "whip", "name": self.secret[:6]}

    def start(self, feed: Feed) -> None:
        self._video.start(feed)

    def stop(self) -> None:
        """Another source has taken over, or the stream ends: nobody will look at what comes."""
        self._video.stop()
        if not self.connection.closed:
            self.connection.spawn(self.close(), "close")

    def bind(self, transceiver: RTCRtpTransceiver) -> None:
        if transceiver.mid == self._camera:
            self._video.attach(transceiver.receiver)

    def left(self) -> None:
        self._video.stop()
        self.stream.drop_source(self)
        self.stream.release(self)

    def _on_too_large(self, text: str) -> None:
        """Said once for each size, of which an honest publisher has few."""
        if text not in self._refused and len(self._refused) < _MAX_REFUSALS:
            self._refused.add(text)
            logger.info("[%s] %s", self.connection.name, text)
            problem = Problem(loc=["source"], msg=text, type="source_too_large")
            self.stream.notify(parameter_error([problem]))

    def _on_video_ended(self, error: str | None) -> None:
        if error is not None and not self.connection.closed:
            logger.info("[%s] %s", self.connection.name, error)
            self.connection.spawn(self.close(), "close")


class Publishers(Sessions[Publisher]):
    """All publishers, and the streams that they make."""

    def __init__(
        self,
        streams: Streams,
        pipelines: Pipelines,
        ice: IceServers,
        connect_timeout_s: float,
        linger_s: float,
    ) -> None:
        """linger_s: how long a stream waits for its publisher to come back."""
        super().__init__()
        self._streams = streams
        self._pipelines = pipelines
        self._ice = ice
        self._connect_timeout_s = connect_timeout_s
        self._linger_s = linger_s
        self._making = asyncio.Lock()  # a stream, which two publishers may ask for

    async def publish(
        self,
        stream_id: str,
        sdp: str,
        *,
        parameters: Mapping[str, Any],
        takeover: bool,
        first_address: str | None,
    ) -> tuple[Publisher, str]:
        """Answer a publisher's offer. parameters: of the stream, when there is none of that name.

        takeover: take the place of another source, although it is alive. Raises ApiError 400, 409, 422, 503.
        """
        with self._streams.counting_refusals():
            return await self._publish(stream_id, sdp, parameters, takeover, first_address)

    async def _publish(
        self,
        stream_id: str,
        sdp: str,
        parameters: Mapping[str, Any],
        takeover: bool,
        first_address: str | None,
    ) -> tuple[Publisher, str]:
        self._streams.require_open()
        offer = read_publisher_offer(sdp)
        if self._pipelines.loaded is None:
            text = "Pipeline not loaded. Please load pipeline first."
            raise ApiError(503, text, headers={"Retry-After": "5"})
        stream = await self._stream(stream_id, parameters)
        if stream.has_live_source and not takeover:
            text = f"Stream {stream.id} has a source already. Stop it, or add ?takeover=1 to the URL."
            raise ApiError(409, text, headers={"Retry-After": "2"})
        publisher = Publisher(stream, offer, self._ice.for_server(), self._connect_timeout_s)
        self.add(publisher)
        stream.take_source(publisher)
        try:
            await stream.look_at_source()
            answer = await publisher.answer(first_address)
        except BaseException:  # refused, or the client hung up
            await publisher.close()
            raise
        logger.info("[%s] Publishes to stream %s", publisher.connection.name, stream.id)
        return publisher, answer

    async def _stream(self, stream_id: str, parameters: Mapping[str, Any]) -> Stream:
        async with self._making:
            stream = self._streams.get(stream_id)
            if stream is not None and not stream.stopped:
                return stream
            if stream is not None:  # its viewers are reading why
                await stream.close()
            parameters = {"input_mode": "video", **parameters}
            return await self._streams.create(stream_id, parameters=parameters, linger_s=self._linger_s)
