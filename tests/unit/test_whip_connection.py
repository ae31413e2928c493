"""What WHIP needs of a connection and of HTTP, one thing at a time."""

import asyncio

import pytest
from aiortc import AudioStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.sdp import SessionDescription

from gateway.access.post_rate import Allowance
from gateway.logs import redact
from gateway.webrtc.aiortc_patches.guards import GuardedConnection, install_guards
from gateway.webrtc.connection import Connection
from gateway.whip.links import ice_links
from gateway.whip.offers import read_publisher_offer
from tests.server.camera import NumberedCamera
from tests.server.peer import until


async def test_sound_that_nobody_reads_is_dropped_before_it_is_decoded() -> None:
    install_guards()
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver(NumberedCamera(), direction="sendonly")
    sound = peer.addTransceiver(AudioStreamTrack(), direction="sendonly")
    await peer.setLocalDescription(await peer.createOffer())
    offer = read_publisher_offer(peer.localDescription.sdp)
    ended = asyncio.Event()
    connection = Connection("test", RTCConfiguration(iceServers=[]), offer, 30, ended.set)

    answer = await connection.answer(lambda transceiver: None, passive=True)
    await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await until(lambda: connection.connected, 30, "connected")

    async def sent() -> int:
        stats = (await sound.sender.getStats()).values()
        return max(s.packetsSent for s in stats if s.type == "outbound-rtp")

    async def much() -> bool:
        return await sent() > 50

    await until(much, 30, "a second of sound")
    [receiver] = [t.receiver for t in connection.peer.getTransceivers() if t.kind == "audio"]
    await peer.close()
    await connection.close()

    assert receiver.track._queue.qsize() <= 1  # type: ignore[attr-defined]  # the end of the track
    assert ended.is_set()


@pytest.mark.parametrize(("first", "expected"), [("127.0.0.2", "127.0.0.2"), (None, "127.0.0.1")])
async def test_the_address_that_the_peer_reached_is_named_first(first: str | None, expected: str) -> None:
    connection = GuardedConnection(ice_controlling=False)
    connection.first_address = first

    found = await connection.get_component_candidates(1, ["127.0.0.1", "127.0.0.2"])
    await connection.close()

    assert next(candidate.host for candidate in found) == expected


async def test_a_connection_that_is_never_made_is_dropped_and_freed() -> None:
    install_guards()
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver("video", direction="sendonly")
    await peer.setLocalDescription(await peer.createOffer())
    ended = asyncio.Event()
    offer = read_publisher_offer(peer.localDescription.sdp)
    connection = Connection("test", RTCConfiguration(iceServers=[]), offer, 0.05, ended.set)

    answer = await connection.answer(lambda transceiver: None, passive=True)
    await asyncio.wait_for(ended.wait(), 30)
    await peer.close()

    assert connection.peer.connectionState == "closed"
    assert [media.dtls.role for media in SessionDescription.parse(answer).media if media.dtls] == ["server"]


def test_ice_servers_are_fields_that_the_simplest_client_can_read() -> None:
    turn = {"urls": ["turn:t.example:3478?transport=udp"], "username": "u", "credential": "c"}
    comma = {"urls": "turn:t.example:3478", "username": "a,b", "credential": "c"}
    stun = {"urls": "stun:s.example:3478", "username": None, "credential": None}

    assert list(ice_links([stun, turn, comma])) == [
        '<stun:s.example:3478>; rel="ice-server"',
        '<turn:t.example:3478?transport=udp>; rel="ice-server"; username="u"; credential="c"; '
        'credential-type="password"',
    ]


def test_an_allowance_is_so_many_at_once_and_so_many_per_second() -> None:
    now = [0.0]
    allowance = Allowance(10, clock=lambda: now[0])

    at_once = [allowance.take() for _ in range(12)]
    now[0] = 0.25
    later = [allowance.take() for _ in range(3)]

    assert at_once == [True] * 10 + [False] * 2
    assert later == [True, True, False]


def test_the_secret_of_a_sessions_address_is_cut_short_in_the_log() -> None:
    line = 'POST /api/v1/whip/studio/abcdefGHIJKL-_mnopqrst "GET /whep/main/123456789"'

    assert redact(line) == 'POST /api/v1/whip/studio/abcdef*** "GET /whep/main/123456***"'
