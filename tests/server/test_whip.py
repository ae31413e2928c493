"""Publishing by WHIP: aiortc publishers and plain requests, on a gateway without Triton."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Iterator

import pytest
from aiortc import AudioStreamTrack
from aiortc.sdp import SessionDescription

from tests.server.camera import GreyCamera, NumberedCamera
from tests.server.client import Answer
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until
from tests.server.sdp_peer import FRAGMENT, SDP, SdpPeer, closed, posted
from tests.server.silent_stun import SilentStun
from tests.server.whip_calls import arriving, no_publishers, offers_refused, publishers
from tests.unit.test_whip_offers import HOST, mutated, offered, only_h264

WHIP = "/api/v1/whip"
PROBLEM = "application/problem+json"
SIZE = {"height": 96, "width": 128}


@pytest.fixture(scope="module")
def stun() -> Iterator[SilentStun]:
    with SilentStun() as server:
        yield server


@pytest.fixture(scope="module")
def whip_server(stun: SilentStun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    """A gateway whose streams wait two seconds for their publisher, and a STUN server that may die."""
    env = {"WANSTREAM_STREAM_LINGER_S": "2", "WANSTREAM_MAX_SESSIONS": "4"}
    env |= {"WANSTREAM_MAX_VIEWERS": "1", "WANSTREAM_TRUSTED_PROXIES": "127.0.0.1"}
    env["WANSTREAM_ICE_SERVERS"] = json.dumps([{"urls": stun.url}])
    process = DoubleProcess(tmp_path_factory.mktemp("whip"), env)
    yield process
    process.stop()


@pytest.fixture
async def server(whip_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """It with LongLive loaded and without streams."""
    await load(whip_server.client, "longlive", SIZE)
    yield whip_server
    await no_publishers(whip_server.client)


def refused(answer: Answer) -> tuple[int, str]:
    """Status and sentence of a refusal, which is a problem object."""
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert problem["status"] == answer.status
    assert problem["title"]
    assert problem["type"]
    return answer.status, problem["detail"]


async def test_a_publisher_is_answered_watched_and_let_go(server: DoubleProcess) -> None:
    async with SdpPeer.publisher(server.client, NumberedCamera(), f"{WHIP}/studio") as peer:
        await peer.begin()
        assert peer.answered is not None
        headers, answer = peer.answered.headers, peer.answered.text
        await arriving(server.client)
        publishing = await publishers(server.client)
        ended = [await peer.end(), await peer.end()]
        await closed(peer.pc)

    assert headers["content-type"] == SDP
    assert re.fullmatch(rf"{WHIP}/studio/[\w-]{{22}}", headers["location"])
    assert re.fullmatch(r'"[0-9a-f]{8}"', headers["etag"])
    assert headers["accept-patch"] == FRAGMENT
    assert headers["cache-control"] == "no-store"
    assert headers["livepeer-playback-url"] == f"{server.url}/api/v1/whep/studio"
    assert headers["link"].startswith("<stun:127.0.0.1:")
    assert 'rel="ice-server"' in headers["link"]
    assert "a=setup:passive" in answer
    assert "a=recvonly" in answer
    assert "a=end-of-candidates" in answer
    assert publishing == 1
    assert [answer.status for answer in ended] == [200, 404]


async def test_an_endpoint_tells_that_it_is_there(server: DoubleProcess) -> None:
    answers = {
        (method, path): await server.client.call(method, path)
        for method in ("GET", "HEAD", "OPTIONS")
        for path in ("/whip", "/whip/a", f"{WHIP}", f"{WHIP}/a", f"{WHIP}/a/")
    }

    for (method, path), answer in answers.items():
        assert answer.status == (200 if method == "OPTIONS" else 204), (method, path)
        assert answer.body == b""
        if method == "OPTIONS":
            assert answer.headers["accept-post"] == SDP
            assert answer.headers["link"].startswith("<stun:")


async def test_a_preflight_is_answered_by_the_cors_rules_alone(server: DoubleProcess) -> None:
    headers = {
        "Origin": server.url,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,content-type,if-match",
    }

    answer = await server.client.call("OPTIONS", f"{WHIP}/a/secret", headers=headers)

    allowed = answer.headers["access-control-allow-headers"].lower()
    methods = answer.headers["access-control-allow-methods"]
    assert answer.status == 200
    assert all(name in allowed for name in ("authorization", "content-type", "if-match"))
    assert all(name in methods for name in ("POST", "GET", "HEAD", "PATCH", "DELETE", "OPTIONS"))
    assert "link" not in answer.headers
    exposed = (await server.client.call("GET", WHIP, headers={"Origin": server.url})).headers
    for name in ("Location", "Link", "ETag", "Accept-Patch"):
        assert name in exposed["access-control-expose-headers"]


async def test_other_methods_of_a_session_are_refused_by_name(server: DoubleProcess) -> None:
    answers = [await server.client.call(method, f"{WHIP}/a/secret") for method in ("PUT", "POST")]

    assert [answer.status for answer in answers] == [405, 405]
    assert all(answer.headers["allow"] == "DELETE, OPTIONS, PATCH" for answer in answers)


async def test_what_cannot_be_published_is_refused_with_a_sentence(server: DoubleProcess) -> None:
    sending = await offered(("audio", "sendonly"), ("video", "sendonly"))
    counted = await offers_refused(server.client, "invalid")

    answers = {
        text: refused(await posted(server.client, f"{WHIP}/{name}", sdp))
        for text, name, sdp in (
            ("KeyError", "a", "v=0\r\nm=video nonsense"),
            ("recvonly", "a", await offered(("video", "recvonly"))),
            ("no video", "a", await offered(("audio", "sendonly"))),
            ("H264", "a", only_h264(sending, "packetization-mode=0")),
            ("one layer", "a", sending + "a=simulcast:send h;l\r\n"),
            ("64 KiB", "a", "x" * (65 << 10)),
            ("cannot name a stream", "A%20b", sending),
            ("taken", "headless", sending),
        )
    }
    wrong_type = await server.client.call("POST", WHIP, json_body={"sdp": sending})
    wrong_mode = await posted(server.client, f"{WHIP}/mode?input_mode=sound", sending)

    assert [status for status, _ in answers.values()] == [400, 400, 422, 422, 422, 413, 422, 422]
    assert await offers_refused(server.client, "invalid") - counted == 8  # not the one that was too long
    for text, (_, detail) in list(answers.items())[1:]:
        assert text in detail
    assert refused(wrong_type) == (415, "The body must be application/sdp: set Content-Type")
    assert refused(wrong_mode)[0] == 422
    assert await publishers(server.client) == 0


async def test_without_a_pipeline_a_publisher_is_asked_to_come_back(server: DoubleProcess) -> None:
    await server.client.call("POST", "/api/v1/pipeline/unload")
    counted = await offers_refused(server.client, "not_loaded")

    answer = await posted(server.client, WHIP, await offered(("video", "sendonly")))

    assert await offers_refused(server.client, "not_loaded") - counted == 1
    assert refused(answer) == (503, "Pipeline not loaded. Please load pipeline first.")
    assert answer.headers["retry-after"] == "5"


async def test_without_room_for_a_stream_a_publisher_is_asked_to_come_back(server: DoubleProcess) -> None:
    streams = "/api/v1/streams"
    for name in ("a", "b", "c", "d"):
        assert (await server.client.call("POST", streams, json_body={"name": name})).status == 201
    try:
        answer = await posted(server.client, f"{WHIP}/e", await offered(("video", "sendonly")))
    finally:
        for name in ("a", "b", "c", "d"):
            await server.client.call("DELETE", f"{streams}/{name}")

    assert refused(answer) == (503, "Maximum number of concurrent sessions (4) reached")
    assert answer.headers["retry-after"] == "5"


async def test_a_second_publisher_waits_unless_it_takes_over(server: DoubleProcess) -> None:
    path = f"{WHIP}/stage"
    async with (
        SdpPeer.publisher(server.client, NumberedCamera(), path) as first,
        SdpPeer.publisher(server.client, NumberedCamera(), f"{path}?takeover=1") as second,
    ):
        await first.begin()
        await arriving(server.client)
        busy = await posted(server.client, path, await offered(("video", "sendonly")))
        await second.begin()
        await closed(first.pc)
        await arriving(server.client)

        assert refused(busy)[0] == 409
        assert busy.headers["retry-after"] == "2"
        assert "?" not in second.location
        assert await publishers(server.client) == 1


async def test_a_publisher_that_died_is_replaced_by_its_successor(server: DoubleProcess) -> None:
    path, dying = f"{WHIP}/crash", NumberedCamera()
    async with (
        SdpPeer.publisher(server.client, dying, path) as first,
        SdpPeer.publisher(server.client, NumberedCamera(), path) as second,
    ):
        await first.begin()
        await arriving(server.client)
        dying.on.clear()  # it still holds its connection, as OBS does for half a minute

        async def accepted() -> bool:
            return (await second.post()).status == 201

        await until(accepted, 30, "the successor is taken, as 409 asked it to try again")
        await second.connected()
        await closed(first.pc)

        await arriving(server.client)


async def test_candidates_that_come_one_by_one_and_useless_ones_connect(server: DoubleProcess) -> None:
    async with SdpPeer.publisher(server.client, NumberedCamera()) as peer:
        own = await peer.offer_sdp()
        bare = await peer.offer_sdp(candidates=False)
        lines = [line for line in own.splitlines() if line.startswith("a=candidate:")]
        useless = [
            "a=candidate:1 0 udp 2122252543 192.0.2.1 5000 typ host",
            "a=candidate:1 1 udp 2122252543 00000000-0000-4000-8000-000000000000.local 5000 typ host",
            "a=candidate:1 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active",
            "a=candidate:1 1 udp 2122252543 [2001:db8::1] 5000 typ host",
            "a=candidate:nonsense",
        ]
        answer = await peer.post(bare)
        fragments = [f"m=audio 9 RTP/AVP 0\r\na=mid:0\r\n{line}\r\n" for line in useless]
        fragments += [f"{line}\r\n" for line in lines] + ["a=end-of-candidates\r\n"]
        patched = [await peer.change(fragment) for fragment in fragments]
        await peer.apply(answer)
        await peer.connected()
        await arriving(server.client)

    assert [(answer.status, answer.body) for answer in patched] == [(204, b"")] * len(fragments)
    assert all("etag" not in answer.headers for answer in patched)


async def test_changes_of_a_session_that_are_refused_leave_it_alive(server: DoubleProcess) -> None:
    async with SdpPeer.publisher(server.client, NumberedCamera()) as peer:
        await peer.begin()
        assert peer.answered is not None
        etag = peer.answered.headers["etag"]
        flood = "".join(f"a=candidate:1 1 udp 1 192.0.2.{n % 250} {2000 + n} typ host\r\n" for n in range(70))

        statuses = [
            (await peer.change(fragment, headers)).status
            for fragment, headers in (
                ("", {}),
                ("", {"If-Match": "*"}),
                ("", {"If-Match": etag}),
                ("", {"If-Match": '"other"'}),
                ("", {"Content-Type": SDP}),
                ("a=ice-ufrag:other\r\na=ice-pwd:other\r\n", {}),
                (flood, {}),
            )
        ]
        unknown = await server.client.call("DELETE", f"{WHIP}/main/{'x' * 22}")
        await arriving(server.client)

    assert statuses == [204, 204, 204, 412, 415, 422, 429]
    assert refused(unknown)[0] == 404


async def test_patches_that_come_too_fast_are_slowed_down(server: DoubleProcess) -> None:
    async with SdpPeer.publisher(server.client, NumberedCamera()) as peer:
        await peer.begin()

        answers = await asyncio.gather(*(peer.change("") for _ in range(100)))

        assert {answer.status for answer in answers} == {204, 429}


async def test_sound_is_taken_and_dropped(server: DoubleProcess) -> None:
    async with SdpPeer.publisher(server.client, NumberedCamera()) as peer:
        peer.pc.addTransceiver(AudioStreamTrack(), direction="sendonly")
        await peer.begin()
        assert peer.answered is not None

        await arriving(server.client, 10)

        sections = SessionDescription.parse(peer.answered.text).media
        assert [(media.kind, media.port != 0, media.direction) for media in sections] == [
            ("video", True, "recvonly"),
            ("audio", True, "recvonly"),
        ]


async def test_an_answer_does_not_wait_for_a_dead_stun_server(
    server: DoubleProcess, stun: SilentStun
) -> None:
    sdp = await offered(("video", "sendonly"))
    stun.senders.clear()
    stun.alive = False
    try:
        answer = await posted(server.client, f"{WHIP}/stun", sdp)
    finally:
        stun.alive = True

    assert answer.status == 201
    # Sockets of the session ask at 0, 0.5, 1.5 and 3.5 s, and aiortc would wait for 5 s.
    assert 1 <= max(stun.senders.values()) < 4
    assert (await server.client.call("DELETE", answer.headers["location"])).status == 200


async def test_a_publisher_stays_while_the_pipeline_is_replaced(server: DoubleProcess) -> None:
    async with (
        SdpPeer.publisher(server.client, NumberedCamera(), f"{WHIP}/reload") as publisher,
        SdpPeer.player(server.client, "/whep/reload") as player,
    ):
        await publisher.begin()
        await player.begin()
        await player.wait_frames(3)

        await server.client.call("POST", "/api/v1/pipeline/unload")
        await load(server.client, "longlive", {"height": 96, "width": 160})
        await until(lambda: player.frames[-1].width == 160, 30, "pictures of the new size")

        assert publisher.pc.connectionState == "connected"
        await arriving(server.client)


@pytest.mark.parametrize("path", [WHIP, "/whep/none", "/api/v1/webrtc/offer"])
async def test_connections_that_one_address_opens_too_fast_are_refused(
    server: DoubleProcess, path: str
) -> None:
    async def status(address: str) -> Answer:
        return await server.client.call("POST", path, body=b"{}", headers={"X-Forwarded-For": address})

    address, busy = f"203.0.113.{100 + len(path)}", list[Answer]()

    async def has_refused() -> bool:
        busy.extend(await asyncio.gather(*(status(address) for _ in range(40))))
        return any(answer.status == 429 for answer in busy)

    await until(has_refused, 60, "a refusal")
    other, own = await status("203.0.113.10"), await asyncio.gather(*(status("127.0.0.1") for _ in range(40)))

    refusal, *_ = [answer for answer in busy if answer.status == 429]
    assert any(answer.status != 429 for answer in busy)
    assert refusal.headers["retry-after"] == "1"
    assert address in refusal.json()["detail"]
    assert 429 not in {answer.status for answer in [other, *own]}


async def test_no_more_players_are_let_in_than_the_limit(server: DoubleProcess) -> None:
    async with (
        SdpPeer.publisher(server.client, NumberedCamera(), f"{WHIP}/full") as publisher,
        SdpPeer.player(server.client, "/whep/full") as player,
    ):
        await publisher.begin()
        await player.begin()

        counted = await offers_refused(server.client, "full")
        answer = await posted(server.client, "/whep/full", await offered(("video", "recvonly")))
        counted_then = await offers_refused(server.client, "full")

    assert counted_then - counted == 1
    assert refused(answer) == (503, "Maximum number of viewers (1) of stream full reached")
    assert answer.headers["retry-after"] == "5"


async def test_pictures_that_are_too_large_are_reported_and_the_connection_stays(
    server: DoubleProcess,
) -> None:
    async with Peer(server.client, direction="recvonly") as driver:
        await driver.connect({"input_mode": "video"})
        source = GreyCamera(3840, 2160)
        path = f"{WHIP}/{driver.session_id}"
        async with SdpPeer.publisher(server.client, source, path) as publisher:
            await publisher.begin()

            message = await driver.wait_message("parameter_error", within_s=30)

            assert [error["type"] for error in message["errors"]] == ["source_too_large"]
            assert "3840x2160" in message["errors"][0]["msg"]
            publisher.pc.getSenders()[0].replaceTrack(NumberedCamera())
            assert await driver.wait_frames(5, within_s=30)


async def test_damaged_offers_and_fragments_disturb_nobody(server: DoubleProcess) -> None:
    logged = len(server.log)
    rng = random.Random(7)
    whole = await offered(("audio", "sendonly"), ("video", "sendonly"))
    async with SdpPeer.publisher(server.client, NumberedCamera()) as peer:
        await peer.begin()
        fragment = f"a=ice-ufrag:abcd\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\na={HOST}\r\n"

        answers = [
            await posted(server.client, f"{WHIP}/fuzz?takeover=1", mutated(whole, rng)) for _ in range(60)
        ]
        patched = [await peer.change(mutated(fragment, rng)) for _ in range(40)]
        await arriving(server.client)
        for answer in answers:
            if answer.status == 201:
                await server.client.call("DELETE", answer.headers["location"])

    assert {answer.status for answer in answers} <= {201, 400, 422}
    assert {answer.status for answer in patched} <= {204, 400, 422, 429}
    assert "Traceback" not in server.log[logged:]


async def test_secrets_of_sessions_are_not_logged(server: DoubleProcess) -> None:
    async with SdpPeer.publisher(server.client, NumberedCamera(), f"{WHIP}/log") as peer:
        await peer.begin()
        secret = peer.location.rpartition("/")[2]

    assert secret[:6] in server.log
    assert secret not in server.log
