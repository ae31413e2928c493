"""An aiortc client of WHIP and WHEP: one POST of SDP, one URL to change and end it."""

from collections.abc import Mapping
from typing import Any

from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription

from tests.server.client import Answer, HttpClient
from tests.server.peer import Peer, until

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"


class SdpPeer(Peer):
    """`Peer` with the requests of RFC 9725. `answered` is the server's answer to its POST."""

    def __init__(self, client: HttpClient, path: str, *, token: str = "", **options: Any) -> None:
        """path: of the endpoint. options: of `Peer`; there is no data channel unless asked for."""
        super().__init__(client, **{"data_channel": False, **options})
        self.path = path
        self._bearer = {"Authorization": f"Bearer {token}"} if token else {}
        self.answered: Answer | None = None

    @classmethod
    def publisher(
        cls, client: HttpClient, source: MediaStreamTrack, path: str = "/api/v1/whip", **options: Any
    ) -> "SdpPeer":
        return cls(client, path, source=source, direction="sendonly", **options)

    @classmethod
    def player(cls, client: HttpClient, path: str = "/api/v1/whep", **options: Any) -> "SdpPeer":
        return cls(client, path, direction="recvonly", **options)

    async def post(self, sdp: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        """POST an offer, its own by default; a 201 is applied when it was its own."""
        offer = await self.offer_sdp() if sdp is None else sdp
        headers = {"Content-Type": SDP, **self._bearer, **(headers or {})}
        answer = await self.client.call("POST", self.path, body=offer.encode(), headers=headers)
        if answer.status == 201:
            self.answered = answer
            if sdp is None:
                await self.apply(answer)
        return answer

    async def apply(self, answer: Answer) -> None:
        await self.pc.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))

    async def begin(self) -> "SdpPeer":
        """POST, and wait for the connection."""
        answer = await self.post()
        assert answer.status == 201, f"refused: {answer.status} {answer.text}"
        await self.connected()
        return self

    @property
    def location(self) -> str:
        assert self.answered is not None
        return self.answered.headers["location"]

    async def change(self, fragment: str, headers: Mapping[str, str] | None = None) -> Answer:
        """PATCH a fragment."""
        headers = {"Content-Type": FRAGMENT, **self._bearer, **(headers or {})}
        return await self.client.call("PATCH", self.location, body=fragment.encode(), headers=headers)

    async def end(self) -> Answer:
        return await self.client.call("DELETE", self.location, headers=self._bearer)


async def posted(client: HttpClient, path: str, sdp: str) -> Answer:
    """The answer to an offer that nobody follows up."""
    return await client.call("POST", path, body=sdp.encode(), headers={"Content-Type": SDP})


async def closed(connection: RTCPeerConnection, within_s: float = 30.0) -> None:
    """Wait until the other side has ended a connection."""
    await until(lambda: connection.connectionState in ("closed", "failed"), within_s, "connection closed")
