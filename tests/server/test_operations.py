"""What operators rely on: probes, metrics, an access token, an orderly end."""

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.camera import NumberedCamera
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until
from tests.server.sdp_peer import SdpPeer, posted

ROOT = Path(__file__).parents[2]
TOKEN = "correct-horse"
PROMPTS = {"prompts": [{"text": "a", "weight": 1.0}]}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    """A server that asks for a token, behind a proxy of the same machine that answers at 127.0.0.2."""
    env = {"WANSTREAM_TOKEN": TOKEN, "WANSTREAM_TRUSTED_PROXIES": "127.0.0.2"}
    process = DoubleProcess(tmp_path_factory.mktemp("guarded"), env)
    yield process
    process.stop()


async def test_metrics_are_those_of_the_documentation(double_server: DoubleProcess) -> None:
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    answer = await double_server.client.call("GET", "/metrics")
    table = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"^\| `wanstream_.*?\|", table, re.M))

    documented = {name.removesuffix("_total") for row in named for name in re.findall(r"wanstream_\w+", row)}
    families = text_string_to_metric_families(answer.body.decode())
    shown = {family.name for family in families if not family.name.endswith("_created")}
    assert {name for name in shown if name.startswith("wanstream_")} == documented


async def test_metrics_tell_what_has_room_and_what_was_refused(tmp_path: Path) -> None:
    env = {"WANSTREAM_MAX_SESSIONS": "1", "WANSTREAM_DRAIN_S": "20", "WANSTREAM_REVISION": "abc123"}
    server = DoubleProcess(tmp_path, env)
    nothing_loaded = scrape(server)
    async with Peer(server.client) as early:
        await early.offer(PROMPTS)
    await load(server.client, "longlive", {"height": 96, "width": 128})
    async with Peer(server.client) as peer, Peer(server.client) as second, Peer(server.client) as third:
        await peer.connect(PROMPTS)
        statuses = [(await second.offer(PROMPTS)).status]
        wrong = {"sdp": "v=0", "type": "offer"}
        statuses.append((await server.client.call("POST", "/api/v1/webrtc/offer", json_body=wrong)).status)
        full = scrape(server)
        server.send_signal(signal.SIGTERM)
        await until(lambda: scrape(server)["wanstream_draining"] == 1, 30, "draining")
        statuses.append((await third.offer(PROMPTS)).status)
        draining = scrape(server)
    server.stop(None)

    refused = "wanstream_offers_refused_total{reason="
    assert statuses == [503, 400, 503]
    assert (nothing_loaded["wanstream_sessions_limit"], nothing_loaded["wanstream_draining"]) == (0, 0)
    assert "wanstream_load_seconds" not in nothing_loaded
    assert [name for name in full if name.startswith("wanstream_build_info") and "abc123" in name]
    assert full["wanstream_sessions_limit"] == 1
    assert full["wanstream_load_seconds"] > 0
    assert {
        name: draining[f"{refused}{name}}}"] for name in ("full", "draining", "not_loaded", "invalid")
    } == {
        "full": 1,
        "draining": 1,
        "not_loaded": 1,
        "invalid": 1,
    }


def scrape(server: DoubleProcess) -> dict[str, float]:
    """Value of every sample; labels are written as in the exposition."""
    text = server.client.request("GET", "/metrics").text
    return {
        sample.name + "".join(f"{{{k}={v}}}" for k, v in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_count_a_stream(double_server: DoubleProcess) -> None:
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    before = scrape(double_server)
    async with Peer(double_server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(20)

        during = scrape(double_server)
        await peer.delete()

    after = scrape(double_server)
    assert during["wanstream_sessions"] == during["wanstream_sessions_connected"] == 1
    assert during["wanstream_pipeline_state{state=loaded}"] == 1
    assert during["wanstream_triton_ready"] == 1
    assert 0 < during["wanstream_session_fps_lowest"] <= during["wanstream_session_fps_mean"]
    assert not [name for name in during if "{session" in name]  # no series for every viewer there ever was
    assert after["wanstream_sessions"] == 0
    assert after["wanstream_frames_out_total"] - before["wanstream_frames_out_total"] >= 20
    chunks = "wanstream_chunk_seconds_count{pipeline=longlive}"
    assert after[chunks] > before.get(chunks, 0)


async def test_a_server_with_triton_is_ready(double_server: DoubleProcess) -> None:
    answer = await double_server.client.call("GET", "/ready")

    assert (answer.status, answer.json()) == (200, {"ready": True, "reason": None})


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/api/v1/pipeline/status", "/static/app.js"])
def test_without_the_token_nothing_is_shown(guarded: DoubleProcess, path: str) -> None:
    answer = guarded.client.request("GET", path)

    assert answer.status == 401
    assert "token" in answer.json()["detail"].lower()
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer", "Basic correct-horse", "Bearer ünïcode", TOKEN])
def test_a_wrong_token_is_refused(guarded: DoubleProcess, header: str) -> None:
    encoded = header.encode().decode("latin-1")

    answer = guarded.client.request("GET", "/api/v1/pipeline/status", headers={"Authorization": encoded})

    assert answer.status == 401


def test_the_token_opens_the_api(guarded: DoubleProcess) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}

    answer = guarded.client.request("GET", "/api/v1/pipeline/status", headers=headers)

    assert answer.status == 200


def test_a_page_opened_with_the_token_keeps_it(guarded: DoubleProcess) -> None:
    opened = guarded.client.request("GET", f"/?token={TOKEN}")
    cookie = opened.headers["set-cookie"].split(";")[0]

    following = guarded.client.request("GET", "/api/v1/pipeline/status", headers={"Cookie": cookie})

    assert opened.status == 200
    assert "HttpOnly" in opened.headers["set-cookie"]
    assert following.status == 200


@pytest.mark.parametrize("path", ["/health?token=wrong", "/api/v1/pipeline/status?token=wrong"])
def test_a_wrong_token_does_not_take_the_place_of_the_cookie(guarded: DoubleProcess, path: str) -> None:
    answer = guarded.client.request("GET", path, headers={"Cookie": f"wanstream_token={TOKEN}"})

    assert answer.status == 200
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("address", "is_secure"), [("127.0.0.2", True), ("127.0.0.1", False)], ids=["proxy", "client"]
)
def test_behind_a_trusted_proxy_with_tls_the_cookie_is_secure(
    guarded: DoubleProcess, address: str, is_secure: bool
) -> None:
    lines = [
        f"GET /?token={TOKEN} HTTP/1.1",
        "Host: localhost",
        "X-Forwarded-Proto: https",
        "Connection: close",
    ]
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=5, source_address=(address, 0)) as s:
        s.sendall("\r\n".join([*lines, "", ""]).encode())
        head = s.makefile("rb").read().partition(b"\r\n\r\n")[0].decode()

    cookie = next(line for line in head.splitlines() if line.lower().startswith("set-cookie"))
    assert ("Secure" in cookie) is is_secure


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_need_no_token(guarded: DoubleProcess, path: str) -> None:
    assert guarded.client.request("GET", path).status == 200


def test_preflights_need_no_token(guarded: DoubleProcess) -> None:
    headers = {"Origin": "null", "Access-Control-Request-Method": "POST"}

    answer = guarded.client.request("OPTIONS", "/api/v1/pipeline/load", headers=headers)

    assert answer.status in (200, 204)


def test_the_token_is_not_logged(guarded: DoubleProcess) -> None:
    guarded.client.request("GET", f"/?token={TOKEN}")

    assert TOKEN not in guarded.log


async def test_sigterm_gives_open_streams_their_time(tmp_path: Path) -> None:
    server = DoubleProcess(tmp_path, {"WANSTREAM_DRAIN_S": "20", "WANSTREAM_MAX_SESSIONS": "2"})
    await load(server.client, "longlive", {"height": 96, "width": 128})
    async with (
        Peer(server.client) as peer,
        Peer(server.client) as late,
        SdpPeer.publisher(server.client, NumberedCamera()) as publisher,
        SdpPeer.player(server.client) as player,
    ):
        await peer.connect(PROMPTS)
        await peer.wait_frames(3)
        await publisher.begin()
        await player.begin()
        await player.wait_frames(1)

        server.send_signal(signal.SIGTERM)
        await until(lambda: server.client.request("GET", "/ready").status == 503, 30, "not ready any more")
        sdp = await late.offer_sdp()
        refused = [
            await late.offer(PROMPTS),
            await posted(server.client, "/whip/late", sdp),
            await posted(server.client, "/whep", sdp),
        ]
        still_streaming = await peer.wait_frames(5)
        await peer.close()
        still_playing = await player.wait_frames(25)
        await player.close()

        code = server.stop(None, within_s=10)
    assert [answer.status for answer in refused] == [503] * 3
    assert all("shutting down" in answer.json()["detail"] for answer in refused)
    assert (len(still_streaming), len(still_playing)) == (5, 25)
    assert code == 0
