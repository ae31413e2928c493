"""Offers, candidates and datagrams as real peers and hostile ones send them, on a gateway without Triton."""

import re
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiortc import RTCSessionDescription

from tests.server.camera import PlainCamera
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, sessions
from tests.server.peer import Peer, until

OFFER = "/api/v1/webrtc/offer"
PROMPTS = {"prompts": [{"text": "a"}]}
HIGH, BASELINE = "640c1f", "42e01f"


@pytest.fixture
async def server(double_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """The gateway with LongLive loaded and without sessions."""
    double_server.reset_faults()
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    yield double_server
    for session_id in await sessions(double_server.client):
        await double_server.client.call("DELETE", f"{OFFER}/{session_id}")


async def post(peer: Peer, sdp: str, parameters: Any = PROMPTS) -> dict[str, Any]:
    """The answer to an offer, which must be accepted."""
    body = {"sdp": sdp, "type": "offer", "initialParameters": parameters}
    answer = await peer.client.call("POST", OFFER, json_body=body)
    assert answer.status == 200, answer.text
    return dict(answer.json())


def only_h264(sdp: str, profile: str) -> str:
    """An offer of aiortc's without VP8, and with H.264 of another profile."""
    sdp = sdp.replace("VP8/90000", "VP9/90000")
    return re.sub("profile-level-id=[0-9a-f]{6}", f"profile-level-id={profile}", sdp)


async def test_a_peer_that_offers_only_high_profile_gets_video(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        answer = await post(peer, only_h264(await peer.offer_sdp(), HIGH))
        profiles = set(re.findall("profile-level-id=([0-9a-f]{6})", answer["sdp"]))
        await peer.accept(answer | {"sdp": answer["sdp"].replace(HIGH, BASELINE)})
        await peer.connected()

        frames = await peer.wait_frames(5)

        assert profiles == {HIGH}
        assert {(frame.width, frame.height) for frame in frames} == {(128, 96)}


async def test_codecs_of_no_use_are_refused_without_a_trace(server: DoubleProcess) -> None:
    logged = len(server.log)
    async with Peer(server.client) as peer:
        sdp = only_h264(await peer.offer_sdp(), HIGH)
        for offer in (
            sdp.replace("H264", "AV1"),
            sdp.replace("packetization-mode=1", "packetization-mode=0"),
        ):
            answer = await server.client.call("POST", OFFER, json_body={"sdp": offer, "type": "offer"})

            assert answer.status == 400
            assert "offer VP8 or H264" in answer.json()["detail"]

    assert "Traceback" not in server.log[logged:]


async def test_one_section_brings_the_camera_and_another_shows_the_video(server: DoubleProcess) -> None:
    async with Peer(server.client, source=PlainCamera((200, 0, 0)), direction="sendonly") as peer:
        peer.pc.addTransceiver("video", direction="recvonly")
        await peer.connect({"input_mode": "video", **PROMPTS})

        assert await peer.wait_frames(5)

        assert server.chunks()[-1]["video_frames"]
        assert [t.currentDirection for t in peer.pc.getTransceivers()] == ["sendonly", "recvonly"]


async def test_only_one_of_two_cameras_is_taken(server: DoubleProcess) -> None:
    async with Peer(server.client, source=PlainCamera((200, 0, 0))) as peer:
        peer.pc.addTransceiver(PlainCamera((0, 0, 200)), direction="sendrecv")
        await peer.connect({"input_mode": "video", **PROMPTS})

        assert await peer.wait_frames(5)

        assert [t.currentDirection for t in peer.pc.getTransceivers()] == ["sendrecv", "inactive"]


@pytest.mark.parametrize("value", [[], "", 0, False, 5, "text", [{}]], ids=repr)
async def test_initial_parameters_that_are_no_object_are_refused(server: DoubleProcess, value: Any) -> None:
    async with Peer(server.client) as peer:
        answer = await peer.offer(value)

    assert answer.status == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "initialParameters"]


async def test_2000_candidates_are_refused_and_the_session_connects_all_the_same(
    server: DoubleProcess,
) -> None:
    async with Peer(server.client) as peer:
        answer = await post(peer, await peer.offer_sdp(candidates=False))
        flood = [
            {
                "candidate": f"candidate:1 1 udp 2122252543 192.0.2.{n % 250} {2000 + n} typ host",
                "sdpMid": "0",
            }
            for n in range(2000)
        ]
        path = f"{OFFER}/{answer['sessionId']}"

        refused = [
            await server.client.call("PATCH", path, json_body={"candidates": candidates})
            for candidates in (flood, flood[:70], flood[70:80])
        ]
        await peer.accept(answer)
        await peer.connected()

        assert [answer.status for answer in refused] == [400, 400, 400]
        assert all("at most 64" in answer.json()["detail"] for answer in refused)
        assert await peer.wait_frames(5)


async def test_candidates_of_no_use_are_ignored(server: DoubleProcess) -> None:
    useless = [
        "candidate:1 1 udp 1 224.0.0.251 5353 typ host",
        "candidate:1 1 udp 1 255.255.255.255 9 typ host",
        "candidate:1 1 udp 1 192.0.2.1 0 typ host",
        "candidate:1 1 udp 1 192.0.2.1 70000 typ host",
        "candidate:1 1 udp 1 fe80::1%eth0 5000 typ host",
        "candidate:1 1 tcp 1 192.0.2.1 9 typ host tcptype active",
        "candidate:1 1 udp 1 example.org 5000 typ host",
    ]
    async with Peer(server.client) as peer:
        await peer.offer(PROMPTS, candidates=False)

        answer = await peer.trickle([{"candidate": text, "sdpMid": "0"} for text in useless * 30])
        await peer.trickle()
        await peer.connected()

        assert answer.status == 204
        assert await peer.wait_frames(5)


async def test_candidates_of_component_0_do_not_stop_a_connection(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        answer = await post(peer, await peer.offer_sdp(candidates=False))
        lines = [x for x in peer.pc.localDescription.sdp.splitlines() if x.startswith("a=candidate:")]
        of_component_0 = [re.sub(r"^a=(candidate:\S+) 1 ", r"\1 0 ", line) for line in lines]
        candidates = [{"candidate": text, "sdpMid": "0"} for text in of_component_0]
        path = f"{OFFER}/{answer['sessionId']}"

        patched = await server.client.call("PATCH", path, json_body={"candidates": candidates})
        await peer.accept(answer)  # its checks come after the candidates
        await peer.connected()

        assert patched.status == 204
        assert await peer.wait_frames(5)


async def test_a_peer_whose_checks_have_no_priority_connects(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        answer = await post(peer, await peer.offer_sdp(candidates=False))
        for transceiver in peer.pc.getTransceivers():
            connection = transceiver.receiver.transport.transport._connection
            build = connection.build_request

            def without_priority(*args: Any, build: Any = build, **options: Any) -> Any:
                request = build(*args, **options)
                del request.attributes["PRIORITY"]
                return request

            connection.build_request = without_priority
        await peer.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await peer.connected()

        assert await peer.wait_frames(5)


async def test_datagrams_that_nobody_asked_for_do_not_disturb(server: DoubleProcess) -> None:
    logged = len(server.log)
    cut_off = struct.pack("!HHI12sHH", 1, 4, 0x2112A442, b"x" * 12, 0x24, 0)  # PRIORITY without a value
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(1)
        ports = re.findall(r"a=candidate:\S+ 1 udp \d+ ([\d.]+) (\d+) ", peer.pc.remoteDescription.sdp)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anybody:
            for host, port in ports:
                for datagram in (b"", b"\x00", cut_off, b"\x16\xfe\xfd" + bytes(40), b"\x80" * 30):
                    anybody.sendto(datagram, (host, int(port)))

        assert await peer.wait_frames(10)
        await until(lambda: peer.pc.connectionState == "connected", 30, "still connected")

    assert ports
    assert "Traceback" not in server.log[logged:]
