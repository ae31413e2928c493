"""One publication: a stream that is sent to a media server, again and again until it is ended."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from aiortc import RTCRtpSender

from gateway.errors import ApiError
from gateway.publications.client import Begun, WhipClient, WhipError
from gateway.publications.target import Target
from gateway.stream.stream import Stream
from gateway.waiting import end
from gateway.webrtc.connection import OfferingConnection
from gateway.webrtc.ice.servers import IceServers
from gateway.webrtc.signalling import Offer, Sections, invalid
from gateway.webrtc.track import EncodedTrack
from gateway.whip.session import GATHERING_S

logger = logging.getLogger(__name__)

State = Literal["connecting", "publishing", "waiting", "failed"]

_BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


class Publication:
    """A sink of its stream, and a holder: the stream lives on while it is published, and ends it.

    One that has failed holds nothing, and is there to be read.
    """

    def __init__(
        self,
        stream: Stream,
        target: Target,
        ice: IceServers,
        connect_timeout_s: float,
        on_end: Callable[["Publication"], object],
        *,
        gives_up: bool = True,
    ) -> None:
        """on_end: nothing is left of it. gives_up: when the server refuses what it has never taken."""
        self.id = secrets.token_hex(4)
        self.stream = stream
        self.target = target
        self.state: State = "connecting"
        self.error: str | None = None  # why it is not published, for people
        self.ended = asyncio.Event()
        self._ice = ice
        self._connect_timeout_s = connect_timeout_s
        self._on_end = on_end
        self._gives_up = gives_up
        self._failures = 0  # since it was published last
        self._since = time.time()
        self._track: EncodedTrack | None = None
        self._client = WhipClient(target.url, target.token)
        stream.hold(self)
        stream.add_sink(self)
        self._task = asyncio.create_task(self._run(), name=f"publication-{self.id}")

    @property
    def info(self) -> Mapping[str, Any]:
        """What whoever sees the stream is told."""
        sent = {} if self._track is None else self._track.info
        return {"kind": "whip_out", "id": self.id, "since": self._since, "state": self.state, **sent}

    def describe(self) -> dict[str, Any]:
        """What its operator is told: neither the token nor a path, which may be a key, too."""
        return {
            "id": self.id,
            "server": self.target.server,
            "codec": self.target.codec,
            "state": self.state,
            "error": self.error,
            "created_at": self._since,
        }

    async def close(self) -> None:
        """End it here and at the server. Idempotent."""
        await end(self._task)
        await self._client.close()
        if not self.ended.is_set():
            self.ended.set()
            self._on_end(self)
            self.stream.remove_sink(self)
            self.stream.release(self)

    async def _run(self) -> None:
        while True:
            await self._publish_or_fail()
            if self.state == "failed":
                break
            pause_s = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
            self._failures += 1
            await asyncio.sleep(pause_s)
        self.stream.release(self)

    async def _publish_or_fail(self) -> None:
        """Publish until that ends, and say why it did."""
        self._say("connecting", self.error)
        try:
            await self._publish()
        except WhipError as error:
            self._say("failed" if error.is_final and self._gives_up else "waiting", str(error))
        except ApiError as error:  # no port is left for media
            self._say("waiting", error.detail)
        except Exception:  # task boundary: another try may do better, the trace is in the log
            logger.exception("[%s] Publication %s failed", self.stream.id, self.id)
            self._say("waiting", "Internal error, see the server's log.")

    async def _publish(self) -> None:
        """Publish until the connection ends. Raises WhipError, at the latest then."""
        ended = asyncio.Event()
        name = f"whip_out {self.stream.id} {self.id}"
        connection = OfferingConnection(name, self._ice.for_server(), self._connect_timeout_s, ended.set)
        track = self._track = EncodedTrack(self.stream.encoders, "whip_out")
        begun: Begun | None = None
        try:
            offer = await self._offered(connection, track)
            begun = await self._client.begin(offer)
            await _accept(connection, begun.answer)
            await ended.wait()
        finally:
            track.stop()
            await connection.close()
            if begun is not None and begun.location is not None:
                await self._client.end(begun.location)
        raise WhipError(track.failure or _ending(connection))

    async def _offered(self, connection: OfferingConnection, track: EncodedTrack) -> str:
        """The offer of a connection that sends `track`, and is told of what becomes of it."""

        def on_state() -> None:
            if connection.connected:
                self._failures, self._gives_up = 0, False
                self._say("publishing", None)

        def on_track_ended() -> None:
            if track.failure is not None and not connection.closed:
                connection.spawn(connection.close(), "close")

        connection.peer.on("connectionstatechange", on_state)
        track.on("ended", on_track_ended)
        transceiver = connection.peer.addTransceiver(track, direction="sendonly")
        known = RTCRtpSender.getCapabilities("video").codecs
        wanted = ("video/rtx", f"video/{self.target.codec}")
        codecs = [codec for codec in known if codec.mimeType in wanted]
        transceiver.setCodecPreferences(sorted(codecs, key=lambda codec: codec.mimeType == "video/rtx"))
        return await connection.offer(GATHERING_S)

    def _say(self, state: State, error: str | None) -> None:
        if (state, error) != (self.state, self.error):
            text = f": {error}" if error and state != "connecting" else ""
            logger.info("[%s] Publication %s %s%s", self.stream.id, self.id, state, text)
        self.state, self.error = state, error


async def _accept(connection: OfferingConnection, sdp: str) -> None:
    """Take a media server's answer. Raises WhipError."""
    try:
        await connection.accept(_read_answer(sdp))
    except ApiError as error:
        reason = error.detail.removeprefix("Invalid SDP offer: ")
        raise WhipError(f"The media server's answer cannot be used: {reason}.", is_final=True) from error


def _read_answer(sdp: str) -> Offer:
    """A server's answer that takes our video. Raises ApiError 400."""
    sections = Sections(sdp)
    video = sections.of("video")
    if len(video) != 1 or len(list(sections)) != 1:
        raise invalid("it has not the one video section of the offer")
    if not video[0].kept:
        raise invalid("it takes no video, or not with the codec that was offered")
    if video[0].direction not in ("recvonly", "sendrecv"):
        raise invalid(f"its video section is {video[0].direction}, not recvonly")
    return sections.answered(viewer=video[0])


def _ending(connection: OfferingConnection) -> str:
    if connection.was_connected:
        return "The media server has ended the connection, or does not answer any more."
    return (
        "The media server answered, but no media connection came about: UDP must pass between it and this "
        "server, or both need a TURN server."
    )
