"""Publishing by WHIP from one gateway to another one, which stands for a media server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.client import Answer, HttpClient
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import wait_status
from tests.server.peer import until
from tests.server.processes import free_port
from tests.server.sdp_peer import SdpPeer
from tests.server.whip_calls import metric, publishers

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADDRESS = "/api/v1/streams/main/publications"
TOKEN = "the-media-server-s"
SIZE = {"PIPELINE": "longlive", "WANSTREAM_PIPELINE_PARAMS": '{"height": 192, "width": 256}'}


class OwnersClient(HttpClient):
    """Sends the token with every request."""

    def request(self, method: str, path: str, **options: Any) -> Answer:
        headers = {"Authorization": f"Bearer {TOKEN}", **(options.pop("headers", None) or {})}
        return super().request(method, path, headers=headers, **options)


class MediaServer:
    """A gateway whose pictures are those that are published to it; it can be ended and started again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._port = free_port()
        self.process = self._started()

    def start_again(self) -> None:
        self.process.stop()
        self.process = self._started()

    def _started(self) -> DoubleProcess:
        env = SIZE | {"WANSTREAM_TOKEN": TOKEN, "WANSTREAM_MAX_SESSIONS": "4"}
        process = DoubleProcess(self._home, env, port=self._port)
        process.client = OwnersClient(process.url)
        process.set_faults(echoes=True)
        return process


@pytest.fixture(scope="module")
def media_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MediaServer]:
    server = MediaServer(tmp_path_factory.mktemp("media-server"))
    yield server
    server.process.stop()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, media_server: MediaServer) -> Iterator[DoubleProcess]:
    """A gateway that publishes, as its environment says."""
    env = SIZE | {
        "WANSTREAM_PUBLISH": f"{media_server.process.url}/whip/show?takeover=1",
        "WANSTREAM_PUBLISH_TOKEN": TOKEN,
    }
    process = DoubleProcess(tmp_path_factory.mktemp("studio"), env)
    yield process
    process.stop()


async def published(studio: DoubleProcess) -> list[dict[str, Any]]:
    return list((await studio.client.call("GET", ADDRESS)).json().get("publications", []))


async def numbers_are_seen(server: MediaServer, name: str) -> None:
    """The pictures of the other gateway are numbered, those of this one are not."""
    client = server.process.client

    async def is_there() -> bool:
        return (await client.call("GET", f"/api/v1/streams/{name}")).status == 200

    await until(is_there, 60, f"stream {name}")
    async with SdpPeer.player(client, f"/whep/{name}?wait=1", token=TOKEN) as player:
        await player.begin()
        await until(lambda: sum(f.number is not None for f in player.frames) >= 5, 60, "numbered pictures")
        numbers = [frame.number for frame in player.frames if frame.number is not None]
    assert numbers[0] < numbers[-1]


async def test_a_viewer_of_the_media_server_sees_what_the_environment_says(
    studio: DoubleProcess, media_server: MediaServer
) -> None:
    await wait_status(studio.client, "loaded")

    await numbers_are_seen(media_server, "show")

    [publication] = await published(studio)
    stream = (await studio.client.call("GET", "/api/v1/streams/main")).json()
    assert (publication["state"], publication["error"]) == ("publishing", None)
    assert publication["server"] == media_server.process.url
    assert stream["kept"] is True
    assert [sink["kind"] for sink in stream["sinks"]] == ["whip_out"]
    assert await metric(studio.client, 'wanstream_publications{state="publishing"}') == 1


async def test_it_is_published_again_when_the_media_server_comes_back(
    studio: DoubleProcess, media_server: MediaServer
) -> None:
    await numbers_are_seen(media_server, "show")

    media_server.start_again()

    await numbers_are_seen(media_server, "show")
    assert TOKEN not in studio.log
    assert "Traceback" not in studio.log


@pytest.mark.parametrize("codec", ["H264", "VP8"])
async def test_a_stream_is_published_as_somebody_asks_and_no_more_when_they_do(
    studio: DoubleProcess, media_server: MediaServer, codec: str
) -> None:
    await numbers_are_seen(media_server, "show")
    name, there = f"second-{codec.lower()}", media_server.process.client
    body = {"url": f"{media_server.process.url}/whip/{name}", "token": TOKEN, "codec": codec}

    made = await studio.client.call("POST", ADDRESS, json_body=body)
    await numbers_are_seen(media_server, name)
    listed = await studio.client.call("GET", ADDRESS)
    before = await publishers(there)
    address = made.headers["location"]
    ended = [(await studio.client.call("DELETE", address)).status for _ in range(2)]

    async def gone() -> bool:
        return await publishers(there) == before - 1

    await until(gone, 30, "the end at the media server")
    await there.call("DELETE", f"/api/v1/streams/{name}")
    assert made.status == 201
    assert address == f"{ADDRESS}/{made.json()['id']}"
    assert TOKEN not in made.text + listed.text
    assert [each["codec"] for each in listed.json()["publications"]] == ["H264", codec]
    assert ended == [204, 404]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"url": "ftp://sfu.example/whip"}, 422, "must be the http or https address of a WHIP endpoint"),
        ({"url": "https://a:b@sfu.example/"}, 422, "without user and password"),
        ({"url": "https://sfu.example/", "token": "a\r\nb"}, 422, "printable ASCII"),
        ({"url": "https://sfu.example/", "codec": "AV1"}, 422, "codec"),
        ({}, 422, "url"),
    ],
)
async def test_what_cannot_be_published_is_refused(
    studio: DoubleProcess, body: dict[str, str], status: int, text: str
) -> None:
    await wait_status(studio.client, "loaded")
    answer = await studio.client.call("POST", "/api/v1/streams/main/publications", json_body=body)

    assert answer.status == status
    assert text in answer.text


async def test_a_wrong_token_is_told_in_the_list(studio: DoubleProcess, media_server: MediaServer) -> None:
    await numbers_are_seen(media_server, "show")
    body = {"url": f"{media_server.process.url}/whip/third", "token": "another"}
    made = await studio.client.call("POST", ADDRESS, json_body=body)

    async def failed() -> Any:
        return next((p for p in await published(studio) if p["state"] == "failed"), None)

    await until(failed, 30, "the refusal")
    told = await failed()
    await studio.client.call("DELETE", made.headers["location"])

    assert told["error"] == "The media server answers 401: it asks for a token, or for another one."
