"""Web pages of strangers in front of a real server: what they may not do, and what stays open."""

import socket
from collections.abc import Iterator

import pytest

from tests.server.double_process import DoubleProcess

STRANGER = {"Origin": "https://evil.example"}
LISTED = {"Origin": "https://studio.example"}
JSON_AS_TEXT = {"Content-Type": "text/plain"}  # what a page may send without asking first
GUARDED = [
    ("POST", "/api/v1/pipeline/load"),
    ("POST", "/api/v1/pipeline/unload"),
    ("POST", "/api/v1/session/parameters"),
    ("POST", "/api/v1/assets?filename=x.png"),
    ("POST", "/api/v1/lora/upload?filename=x.safetensors"),
    ("POST", "/api/v1/webrtc/offer"),
    ("DELETE", "/api/v1/webrtc/offer/x"),
    ("GET", "/api/v1/session/frame"),
    ("GET", "/api/v1/session/parameters"),
    ("GET", "/api/v1/logs/current"),
    ("GET", "/api/v1/logs/tail"),
    ("GET", "/api/v1/assets"),
    ("GET", "/api/v1/webrtc/ice-servers"),
]


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    """A server with a list of origins, behind a proxy of the same machine that answers at 127.0.0.2."""
    env = {"WANSTREAM_CORS_ORIGINS": LISTED["Origin"], "WANSTREAM_TRUSTED_PROXIES": "127.0.0.2"}
    process = DoubleProcess(tmp_path_factory.mktemp("listing"), {**env, "WANSTREAM_TOKEN": ""})
    yield process
    process.stop()


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("host", ["localhost:{}", "127.0.0.1:{}", "[::1]:{}"])
def test_a_stranger_s_page_cannot_drive_a_server_on_localhost(
    double_server: DoubleProcess, method: str, path: str, host: str
) -> None:
    headers = STRANGER | JSON_AS_TEXT | {"Host": host.format(double_server.port)}

    answer = double_server.client.request(method, path, headers=headers)

    assert answer.status == 403
    assert "WANSTREAM_CORS_ORIGINS" in answer.json()["detail"]


def test_a_stranger_s_page_cannot_read_a_picture(double_server: DoubleProcess) -> None:
    (double_server.assets / "mine.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    client = double_server.client

    answers = {
        name: client.request("GET", "/api/v1/assets/mine.png", headers=headers).status
        for name, headers in {"stranger": STRANGER, "disk": {"Origin": "null"}, "program": {}}.items()
    }

    (double_server.assets / "mine.png").unlink()
    assert answers == {"stranger": 403, "disk": 200, "program": 200}


@pytest.mark.parametrize("origin", ["null", "http://localhost:5173", "http://127.0.0.1:1", "http://[::1]"])
def test_pages_of_the_same_machine_work(double_server: DoubleProcess, origin: str) -> None:
    answer = double_server.client.request("POST", "/api/v1/pipeline/unload", headers={"Origin": origin})

    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/", "/api/v1/pipeline/status", "/api/v1/pipelines/schemas"]
)
def test_what_is_public_stays_open_to_every_page(double_server: DoubleProcess, path: str) -> None:
    answer = double_server.client.request("GET", path, headers=STRANGER)

    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == STRANGER["Origin"]


def test_a_server_that_is_reached_by_an_address_is_open(double_server: DoubleProcess) -> None:
    headers = STRANGER | {"Host": f"192.0.2.1:{double_server.port}"}

    answer = double_server.client.request("POST", "/api/v1/pipeline/unload", headers=headers)

    assert answer.status == 200


@pytest.mark.parametrize("path", ["/", "/health", "/api/v1/session/parameters"])
def test_a_rebound_name_is_not_answered(double_server: DoubleProcess, path: str) -> None:
    host = f"evil.example:{double_server.port}"

    answer = double_server.client.request("GET", path, headers={"Host": host, "Origin": f"http://{host}"})

    assert answer.status == 403
    assert "WANSTREAM_TRUSTED_PROXIES" in answer.json()["detail"]


def test_http_1_0_without_a_host_is_answered(double_server: DoubleProcess) -> None:
    with socket.create_connection(("127.0.0.1", double_server.port), timeout=5) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        answer = connection.makefile("rb").readline()

    assert b" 200 " in answer


@pytest.mark.parametrize("host", ["localhost", "192.0.2.1"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [(STRANGER, 403), (LISTED, 200), ({}, 200), ({"Origin": "null"}, 403)],
    ids=["stranger", "listed", "program", "disk"],
)
def test_a_list_keeps_simple_posts_from_acting(
    listing: DoubleProcess, host: str, headers: dict[str, str], status: int
) -> None:
    sent = headers | JSON_AS_TEXT | {"Host": f"{host}:{listing.port}"}

    answer = listing.client.request("POST", "/api/v1/pipeline/unload", headers=sent)

    assert answer.status == status


def test_a_listed_name_is_answered(listing: DoubleProcess) -> None:
    answer = listing.client.request("GET", "/health", headers={"Host": "studio.example"})

    assert answer.status == 200


@pytest.mark.parametrize(("address", "status"), [("127.0.0.2", 200), ("127.0.0.1", 403)])
def test_only_a_trusted_proxy_may_use_any_name(listing: DoubleProcess, address: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", listing.port), timeout=5, source_address=(address, 0)) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: public.example\r\nConnection: close\r\n\r\n")
        answer = s.makefile("rb").readline()

    assert f" {status} ".encode() in answer
