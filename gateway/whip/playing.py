"""WHEP: players that see a stream."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiortc import RTCConfiguration, RTCDataChannel, RTCRtpTransceiver

from gateway.errors import ApiError, Problem
from gateway.pipelines.state import Pipelines
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams
from gateway.webrtc.channels import Channels
from gateway.webrtc.ice.servers import IceServers
from gateway.webrtc.signalling import Offer
from gateway.webrtc.track import EncodedTrack
from gateway.whip.offers import read_player_offer
from gateway.whip.session import Session, Sessions

logger = logging.getLogger(__name__)


class Player(Session):
    """A player's connection, a sink of its stream. It holds nothing; its data channel tells what happens."""

    def __init__(
        self, stream: Stream, offer: Offer, configuration: RTCConfiguration, connect_timeout_s: float
    ) -> None:
        super().__init__("whep", stream.id, offer, configuration, connect_timeout_s)
        self.stream = stream
        self._viewer = offer.viewer
        self._since = time.time()
        self._track = EncodedTrack(stream.encoders, "whep")
        self._track.on("ended", self._on_track_ended)
        self._channels: Channels | None = None
        self.connection.peer.on("datachannel", self._on_channel)
        stream.add_sink(self)

    @property
    def info(self) -> Mapping[str, Any]:
        return {"kind": "whep", "id": self.secret[:6], "since": self._since, **self._track.info}

    def bind(self, transceiver: RTCRtpTransceiver) -> None:
        if transceiver.mid == self._viewer:
            transceiver.sender.replaceTrack(self._track)

    def left(self) -> None:
        self._track.stop()
        counted = self._track.failure is not None
        self.stream.remove_sink(self, None if counted else self.connection.end_reason)
        if self._channels is not None:
            self.stream.remove_control(self._channels)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._channels is None:
            name = self.secret[:6]
            self._channels = Channels(name, "viewer", "player", self._refuse, self._begin_to_close)
            self.stream.add_control(self._channels)
            self._channels.notify(self.stream.introduction(self._channels))
            self.connection.spawn(self._channels.run(), "messages")
        self._channels.add(channel)

    async def _refuse(self, messages: Sequence[str | bytes | None], together: bool) -> list[list[Problem]]:
        return await self.stream.update_by_messages(messages, together, self._channels)

    def _on_track_ended(self) -> None:
        """Pictures cannot be encoded, or are taken too slowly; or the connection has ended."""
        if self._track.failure is not None:
            logger.info("[%s] %s", self.connection.name, self._track.failure)
            self._begin_to_close()

    def _begin_to_close(self) -> None:
        if not self.connection.closed:
            self.connection.spawn(self.close(), "close")


class Players(Sessions[Player]):
    """All players."""

    def __init__(
        self, streams: Streams, pipelines: Pipelines, ice: IceServers, connect_timeout_s: float
    ) -> None:
        super().__init__()
        self._streams = streams
        self._pipelines = pipelines
        self._ice = ice
        self._connect_timeout_s = connect_timeout_s

    async def play(
        self, stream_id: str, sdp: str, *, wait: bool, first_address: str | None
    ) -> tuple[Player, str]:
        """Answer a player's offer. wait: also when there is nothing to see yet.

        Raises ApiError 400, 404, 409 (nothing to see yet), 422, 503 (too many viewers).
        """
        with self._streams.counting_refusals():
            return await self._play(stream_id, sdp, wait, first_address)

    async def _play(
        self, stream_id: str, sdp: str, wait: bool, first_address: str | None
    ) -> tuple[Player, str]:
        stream = self._streams.find(stream_id)
        offer = read_player_offer(sdp)
        if not wait and not self._has_pictures(stream):
            text = f"Stream {stream.id} shows nothing yet. Try again, or add ?wait=1 to the URL."
            raise ApiError(409, text, headers={"Retry-After": "2"})
        self._streams.require_place(stream)
        player = Player(stream, offer, self._ice.for_server(), self._connect_timeout_s)
        self.add(player)
        try:
            return player, await player.answer(first_address)
        except BaseException:  # refused, or the client hung up
            await player.close()
            raise

    def _has_pictures(self, stream: Stream) -> bool:
        if stream.output.last is not None:
            return True
        needs_source = stream.state.input_mode == "video"
        return self._pipelines.loaded is not None and (stream.source is not None or not needs_source)
