"""Publishing a stream by WHIP, to media servers that keep to the rules and to some that do not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aioice import ice, stun
from aiortc import RTCConfiguration

from gateway.config import Config, Limits, Secrets
from gateway.errors import ApiError
from gateway.pipelines.load_params import LoadRequest
from gateway.pipelines.state import Pipelines, State
from gateway.publications.client import WhipClient, WhipError
from gateway.publications.publications import Publications
from gateway.publications.target import Target
from gateway.stream.streams import Streams
from gateway.webrtc.aiortc_patches.guards import install_guards
from gateway.webrtc.aiortc_patches.sender import install_sender
from gateway.webrtc.connection import Connection
from gateway.webrtc.ice.servers import IceServers
from gateway.whip.offers import read_publisher_offer
from streaming.errors import WanstreamError
from streaming.specs import SPECS
from tests.local_http import LocalHttp, Reply, Request
from tests.server.double import DoubleServing
from tests.server.peer import until
from tests.unit.test_peer_close import Nobody


class RudeServer(LocalHttp):
    """Gives these answers to POST, the last one for ever, and 200 to everything else."""

    def __init__(self, *replies: Reply) -> None:
        super().__init__()
        self.replies = list(replies)

    async def answer(self, request: Request) -> Reply:
        if request.method != "POST":
            return Reply(200)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    @property
    def seen(self) -> list[tuple[str, str, str | None]]:
        return [(r.method, r.target, r.headers.get("authorization")) for r in self.requests]


class MediaServer(LocalHttp):
    """Takes what is published. `connections` are its sessions, the newest last."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: list[Connection] = []

    async def answer(self, request: Request) -> Reply:
        if request.method == "DELETE":
            await self.connections[int(request.path.rpartition("/")[2])].close()
            return Reply(200)
        offer = read_publisher_offer(request.body.decode())
        name = f"media-server-{len(self.connections)}"
        connection = Connection(name, RTCConfiguration(iceServers=[]), offer, 30, lambda: None)
        self.connections.append(connection)
        answer = await connection.answer(lambda transceiver: None, passive=True)
        location = f"sessions/{len(self.connections) - 1}"
        return Reply(201, answer.encode(), {"Location": location})


@pytest.fixture
async def streams(tmp_path: Path) -> AsyncIterator[Streams]:
    install_guards()
    install_sender()
    pipelines = Pipelines(DoubleServing(), load_timeout_s=60)
    params = {"height": 96, "width": 128}
    pipelines.request_load(LoadRequest(SPECS["longlive"], params, [], chosen=frozenset()))
    await pipelines.wait_for(State.LOADED)
    streams = Streams(pipelines, Nobody(), tmp_path, Limits())
    yield streams
    await streams.close()
    await pipelines.close()


@pytest.fixture
def publications(streams: Streams) -> Publications:
    return Publications(streams, IceServers(Secrets()), connect_timeout_s=30)


@pytest.mark.parametrize(
    ("status", "text", "is_final"),
    [
        (401, "401: it asks for a token, or for another one", True),
        (404, "404: it knows no such address", True),
        (302, "302: expected is 201", True),
        (409, "409: somebody publishes there already", False),
        (503, "503: expected is 201", False),
    ],
)
async def test_a_refusal_is_a_sentence_and_says_whether_another_try_helps(
    status: int, text: str, is_final: bool
) -> None:
    async with RudeServer(Reply(status, b"a long page", {"Location": "/login"})) as server:
        client = WhipClient(server.url, "secret")
        with pytest.raises(WhipError) as refusal:
            await client.begin("an offer")
        await client.close()

    assert str(refusal.value) == f"The media server answers {text}."
    assert refusal.value.is_final is is_final


def hang_up(connection: Connection) -> None:
    """Be gone without a word, as by a loss of power."""
    for transceiver in connection.peer.getTransceivers():
        for protocol in transceiver.receiver.transport.transport._connection._protocols:
            protocol.transport.close()


async def test_redirects_are_followed_and_the_session_is_found_from_there() -> None:
    moved = Reply(307, headers={"Location": "/edge/whip"})
    async with RudeServer(moved, Reply(201, b"an answer", {"Location": "sessions/1"})) as server:
        client = WhipClient(f"{server.url}/studio/whip", "secret")
        begun = await client.begin("an offer")
        assert begun.location is not None
        await client.end(begun.location)
        await client.close()

    assert begun.answer == "an answer"
    assert server.seen == [
        ("POST", "/studio/whip", "Bearer secret"),
        ("POST", "/edge/whip", "Bearer secret"),
        ("DELETE", "/edge/sessions/1", "Bearer secret"),
    ]
    assert [request.body for request in server.requests] == [b"an offer", b"an offer", b""]


async def test_a_server_may_name_no_session_and_must_not_redirect_for_ever() -> None:
    replies = [
        Reply(201, b"an answer", {"Location": url} if url else {}) for url in ("", "ftp://a", "http://a:b")
    ]
    async with RudeServer(*replies, Reply(308, headers={"Location": "/"})) as server:
        client = WhipClient(server.url, None)
        begun = [await client.begin("an offer") for _ in replies]
        with pytest.raises(WhipError, match="redirects more than 5 times"):
            await client.begin("an offer")
        await client.close()

    assert [each.location for each in begun] == [None] * 3
    assert server.seen[0] == ("POST", "/", None)


async def test_a_server_that_does_not_answer_in_time_is_given_up() -> None:
    slow = Reply(201, b"v=0\r\n" * 2000, piece_bytes=5, piece_delay_s=0.05)  # each piece in time
    async with RudeServer(slow) as server:
        client = WhipClient(server.url, None, answer_s=0.5)
        with pytest.raises(WhipError, match="does not answer within"):
            await client.begin("an offer")
        await client.close()


async def test_a_server_that_is_not_there_or_says_too_much_is_told_as_such() -> None:
    async with RudeServer(Reply(201, b"x" * 100_000)) as server:
        client = WhipClient(server.url, None)
        with pytest.raises(WhipError, match="longer than 64 KiB"):
            await client.begin("an offer")
    with pytest.raises(WhipError, match=r"cannot be reached \(ConnectError\)"):
        await client.begin("an offer")
    await client.close()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"<html>welcome</html>", "cannot be used"),
        (b"", "it has not the one video section of the offer"),
        (b"v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=rtpmap:96 AV1/90000\r\n", "it takes no video"),
    ],
)
async def test_an_answer_that_is_none_fails_and_ends_the_session(
    streams: Streams, publications: Publications, answer: bytes, text: str
) -> None:
    stream = await streams.create("show", kept=True)
    async with RudeServer(Reply(201, answer, {"Location": "/sessions/1"})) as server:
        publication = publications.begin(stream, Target(f"{server.url}/whip"))
        await until(lambda: publication.state == "failed", 30, "the publication's failure")
        told, seen = publication.error, server.seen
        await streams.end(stream, "the test is over")

    assert told is not None
    assert text in told
    assert seen[-1][:2] == ("DELETE", "/sessions/1")
    assert list(publications) == []


@pytest.mark.parametrize("silent", [False, True], ids=["told", "silent"])
async def test_a_publication_comes_back_and_ends_with_its_stream(
    silent: bool, streams: Streams, publications: Publications, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await streams.create("show")
    async with MediaServer() as server:
        publication = publications.begin(stream, Target(f"{server.url}/whip/studio", codec="VP8"))

        async def received(session: int) -> None:
            await until(lambda: len(server.connections) > session, 30, f"session {session}")
            connection = server.connections[session]
            await until(lambda: connection.connected, 30, f"session {session} connected")
            [transceiver] = connection.peer.getTransceivers()
            await until(lambda: publication.state == "publishing", 30, "publishing")
            await until(lambda: publication.info.get("frames"), 30, "pictures")
            assert transceiver._codecs[0].mimeType == "video/VP8"

        await received(0)
        held = (stream.closed, stream.video_viewers, stream.viewers)
        with monkeypatch.context() as quick:
            if silent:
                quick.setattr(ice, "CONSENT_INTERVAL", 0.01)
                quick.setattr(stun, "RETRY_RTO", 0.05)
                hang_up(server.connections[0])
            else:
                await server.connections[0].close()
            await until(lambda: publication.error, 60, "the loss")
            said = publication.error
        await received(1)
        then = publication.error
        await streams.end(stream, "the test is over")
        methods = [(request.method, request.path) for request in server.requests]

    assert held == (False, 1, 0)
    assert said == "The media server has ended the connection, or does not answer any more."
    assert then is None
    assert methods[-1] == ("DELETE", "/whip/sessions/1")
    assert server.connections[1].closed
    assert list(publications) == []


async def test_a_server_that_refuses_is_asked_again_by_whoever_does_not_give_up(
    streams: Streams, publications: Publications
) -> None:
    stream = await streams.create("show", kept=True)
    async with RudeServer(Reply(404)) as server:
        patient = publications.begin(stream, Target(server.url), gives_up=False)
        other = publications.begin(stream, Target(server.url))
        await until(lambda: other.state == "failed", 30, "the failure")
        await until(lambda: len(server.requests) >= 3, 30, "another request")
        listed = [each.describe() for each in publications.of(stream)]
        await patient.close()
        found = [each.id for each in publications]

    assert [each["state"] for each in listed][1] == "failed"
    assert found == [other.id]
    with pytest.raises(ApiError):
        publications.find(stream, patient.id)


async def test_a_publication_ends_while_its_server_hangs(
    streams: Streams, publications: Publications
) -> None:
    stream = await streams.create("show", kept=True)
    asked = asyncio.Event()

    class Silent(LocalHttp):
        async def answer(self, request: Request) -> Reply:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

    async with Silent() as server:
        publication = publications.begin(stream, Target(server.url))
        await asyncio.wait_for(asked.wait(), 30)
        await publication.close()

    assert list(publications) == []
    assert publication not in stream.sinks


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"WANSTREAM_PUBLISH": "rtmp://sfu.example"}, "WANSTREAM_PUBLISH must be the http or https address"),
        ({"WANSTREAM_PUBLISH": "https://a:b@sfu.example/whip"}, "without user and password"),
        ({"WANSTREAM_PUBLISH": "https://"}, "must be the http or https address"),
        ({"WANSTREAM_PUBLISH_TOKEN": "secret"}, "set both"),
        ({"WANSTREAM_PUBLISH": "https://s.example", "WANSTREAM_PUBLISH_TOKEN": "a\nb"}, "printable ASCII"),
        ({"WANSTREAM_PUBLISH": "https://s.example", "PIPELINE": ""}, "needs PIPELINE"),
    ],
)
def test_settings_that_cannot_be_used_are_told(values: dict[str, str], text: str) -> None:
    with pytest.raises(WanstreamError, match=text):
        Config.from_env({"PIPELINE": "longlive", **values})


def test_neither_token_nor_address_is_part_of_a_repr() -> None:
    values = {"PIPELINE": "longlive", "WANSTREAM_PUBLISH": "https://sfu.example/live/stream-key?a=b"}
    config = Config.from_env({**values, "WANSTREAM_PUBLISH_TOKEN": "very-secret"})

    shown = repr(config) + repr(Target(str(config.publish_url), config.secrets.publish_token))

    assert "very-secret" not in shown
    assert "stream-key" not in shown
    assert Target(str(config.publish_url)).server == "https://sfu.example"
