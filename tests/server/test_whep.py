"""Watching by WHEP: aiortc players and plain requests, on a gateway without Triton."""

import random
import re
from collections.abc import AsyncIterator

import pytest
from aiortc import RTCRtpReceiver
from aiortc.sdp import SessionDescription

from tests.server.camera import NumberedCamera
from tests.server.client import HttpClient
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, sessions
from tests.server.peer import Peer, until
from tests.server.sdp_peer import FRAGMENT, SDP, SdpPeer, closed, posted
from tests.server.test_whip import refused
from tests.server.whip_calls import metric, no_publishers, offers_refused
from tests.unit.test_whip_offers import mutated, offered

WHEP = "/api/v1/whep"
SIZE = {"height": 96, "width": 128}


@pytest.fixture
async def server(double_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """The gateway with LongLive loaded and without streams."""
    double_server.reset_faults()
    await double_server.client.call("POST", "/api/v1/pipeline/unload")  # streams of tests before end
    await load(double_server.client, "longlive", SIZE)
    yield double_server
    for session_id in await sessions(double_server.client):
        await double_server.client.call("DELETE", f"/api/v1/webrtc/offer/{session_id}")
    await no_publishers(double_server.client)


async def viewers(client: HttpClient, protocol: str = "whep") -> float:
    return await metric(client, f'wanstream_viewers{{protocol="{protocol}"}}')


async def test_players_see_what_a_publisher_sends(server: DoubleProcess) -> None:
    async with (
        SdpPeer.publisher(server.client, NumberedCamera(), "/whip/studio") as publisher,
        SdpPeer.player(server.client, "/whep/studio") as first,
        SdpPeer.player(server.client, f"{WHEP}/studio") as second,
    ):
        await publisher.begin()
        for player in (first, second):
            await player.begin()
        assert first.answered is not None
        headers, answer = first.answered.headers, first.answered.text
        for player in (first, second):
            await player.wait_frames(5)
        watching = await viewers(server.client)
        ingested = await metric(server.client, 'wanstream_ingest_frames_total{kind="whip"}')
        begun = await metric(server.client, 'wanstream_first_picture_seconds_count{protocol="whep"}')
        assert server.chunks()[-1]["video_frames"]
        waited = await metric(server.client, "wanstream_input_to_picture_seconds_count")
        left = 'wanstream_viewers_closed_total{reason="left"}'

        async def measured() -> bool:
            return await metric(server.client, "wanstream_viewer_rtt_seconds_count") > 0

        await until(measured, 30, "a viewer's report")
        ended = [await first.end(), await first.end()]
        await closed(first.pc)
        await second.wait_frames(5)
        gone = await metric(server.client, left)

    assert headers["content-type"] == SDP
    assert re.fullmatch(rf"{WHEP}/studio/[\w-]{{22}}", headers["location"])
    assert re.fullmatch(r'"[0-9a-f]{8}"', headers["etag"])
    assert headers["accept-patch"] == FRAGMENT
    assert "livepeer-playback-url" not in headers
    [video] = SessionDescription.parse(answer).media
    assert video.direction == "sendonly"
    assert video.msid
    assert "a=setup:passive" in answer
    assert watching == 2
    assert ingested > 0
    assert begun >= 2
    assert waited > 0
    assert gone >= 1
    assert [answer.status for answer in ended] == [200, 404]


async def test_a_player_needs_a_stream_with_something_to_see_unless_it_waits(server: DoubleProcess) -> None:
    receiving = await offered(("video", "recvonly"))
    counted = await offers_refused(server.client, "invalid")
    unknown = await posted(server.client, f"{WHEP}/nothing", receiving)
    async with (
        Peer(server.client, direction="recvonly") as driver,
        SdpPeer.player(server.client) as player,
    ):
        await driver.connect({"input_mode": "video"})
        path = f"{WHEP}/{driver.session_id}"
        early = await posted(server.client, path, receiving)
        player.path = f"{path}?wait=1"
        await player.begin()
        assert not player.frames

        async with SdpPeer.publisher(
            server.client, NumberedCamera(), f"/whip/{driver.session_id}"
        ) as publisher:
            await publisher.begin()
            await player.wait_frames(3)

    assert await offers_refused(server.client, "invalid") - counted == 2
    assert refused(unknown)[0] == 404
    assert refused(early)[0] == 409
    assert early.headers["retry-after"] == "2"


async def test_without_a_name_the_newest_stream_is_shown(server: DoubleProcess) -> None:
    async with Peer(server.client) as driver, SdpPeer.player(server.client, "/whep") as player:
        await driver.connect({"prompts": [{"text": "a"}]})
        await player.begin()

        await player.wait_frames(3)

        assert f"/{driver.session_id}/" in player.location


async def test_an_address_tells_a_player_what_it_is(server: DoubleProcess) -> None:
    head, get, options = [
        await server.client.call(method, f"{WHEP}/main") for method in ("HEAD", "GET", "OPTIONS")
    ]

    assert (head.status, head.headers["content-type"], head.body) == (200, SDP, b"")
    assert (get.status, get.body) == (204, b"")
    assert (options.status, options.headers["accept-post"]) == (200, SDP)


async def test_offers_that_could_show_nothing_are_refused(server: DoubleProcess) -> None:
    async with Peer(server.client) as driver:
        await driver.connect({"prompts": [{"text": "a"}]})
        offers = [await offered(("video", "sendonly")), await offered(("audio", "recvonly")), "", "v=0"]

        answers = [refused(await posted(server.client, f"{WHEP}/main", sdp)) for sdp in offers]

        assert [status for status, _ in answers] == [400] * len(offers)
        assert await viewers(server.client) == 0


async def test_the_answer_to_an_offer_with_sound_and_data_shows_the_video_alone(
    server: DoubleProcess,
) -> None:
    async with (
        Peer(server.client) as driver,
        SdpPeer.player(server.client, audio=True, data_channel=True) as player,
    ):
        await driver.connect({"prompts": [{"text": "a"}]})
        await player.begin()
        await player.wait_frames(3)
        state = await player.wait_message("stream_state")
        driver.send({"noise_scale": 0.3})
        news = await player.wait_message("parameters_updated")
        player.send({"noise_scale": 0.9})
        refusal = await player.wait_message("parameter_error")

        assert player.answered is not None
        sections = SessionDescription.parse(player.answered.text).media
        assert [(media.kind, media.direction) for media in sections] == [
            ("video", "sendonly"),
            ("audio", "inactive"),
            ("application", None),
        ]
        assert (state["streamId"], state["role"]) == (driver.session_id, "viewer")
        assert news["parameters"] == {"noise_scale": 0.3}
        assert [error["type"] for error in refusal["errors"]] == ["not_driver"]


async def test_a_player_does_not_keep_a_stream_alive(server: DoubleProcess) -> None:
    async with Peer(server.client) as driver, SdpPeer.player(server.client) as player:
        await driver.connect({"prompts": [{"text": "a"}]})
        await player.begin()
        await player.wait_frames(3)

        await driver.delete()

        await closed(player.pc)
        assert (await posted(server.client, WHEP, await offered(("video", "recvonly")))).status == 404


async def test_a_player_that_vanishes_disturbs_nobody(server: DoubleProcess) -> None:
    async with Peer(server.client) as driver, SdpPeer.player(server.client) as stays:
        await driver.connect({"prompts": [{"text": "a"}]})
        await stays.begin()
        for _ in range(3):
            async with SdpPeer.player(server.client) as leaves:
                await leaves.begin()
                await leaves.wait_frames(1)

        await stays.wait_frames(5)
        await driver.wait_frames(5)

        async def alone() -> bool:
            return await viewers(server.client) == 1

        await until(alone, 30, "one player left")


async def test_trickled_candidates_connect_and_restarts_are_refused(server: DoubleProcess) -> None:
    async with Peer(server.client) as driver, SdpPeer.player(server.client) as player:
        await driver.connect({"prompts": [{"text": "a"}]})
        whole = await player.offer_sdp()
        lines = [line for line in whole.splitlines() if line.startswith("a=candidate:")]
        answer = await player.post(await player.offer_sdp(candidates=False))
        fragments = [
            f"m=video 9 RTP/AVP 0\r\na=mid:0\r\n{line.replace(' 1 udp', ' 0 udp')}\r\n" for line in lines
        ]
        fragments += [f"m=video 9 RTP/AVP 0\r\na=mid:0\r\n{line}\r\n" for line in lines]
        statuses = [(await player.change(fragment)).status for fragment in fragments]
        restart = await player.change("a=ice-ufrag:new1\r\na=ice-pwd:anothernewpasswordthatislong\r\n")
        mismatch = await player.change("", {"If-Match": '"0"'})
        await player.apply(answer)
        await player.connected()

        await player.wait_frames(3)

        assert statuses == [204] * len(fragments)
        assert (restart.status, mismatch.status) == (422, 412)


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_the_first_codec_of_the_offer_is_played(server: DoubleProcess, codec: str) -> None:
    async with Peer(server.client) as driver, SdpPeer.player(server.client) as player:
        await driver.connect({"prompts": [{"text": "a"}]})
        prefer(player, codec)
        await player.begin()

        await player.wait_frames(5)

        assert player.answered is not None
        [video] = SessionDescription.parse(player.answered.text).media
        assert video.rtp.codecs[0].name == codec


async def test_damaged_offers_disturb_no_player(server: DoubleProcess) -> None:
    logged = len(server.log)
    async with Peer(server.client) as driver, SdpPeer.player(server.client) as player:
        await driver.connect({"prompts": [{"text": "a"}]})
        await player.begin()
        whole = await offered(("audio", "recvonly"), ("video", "recvonly"), data=True)
        rng = random.Random(9)

        answers = [await posted(server.client, WHEP, mutated(whole, rng)) for _ in range(60)]

        await player.wait_frames(3)
        for answer in answers:
            if answer.status == 201:
                await server.client.call("DELETE", answer.headers["location"])
        assert {answer.status for answer in answers} <= {201, 400, 422, 503}

    assert "Traceback" not in server.log[logged:]


def prefer(peer: Peer, codec: str) -> None:
    """Offer one codec before the others."""
    [transceiver] = peer.pc.getTransceivers()
    codecs = RTCRtpReceiver.getCapabilities("video").codecs
    transceiver.setCodecPreferences(sorted(codecs, key=lambda each: each.name != codec))
