"""A server with every secret that it can be given: none of them is told, whatever is asked and logged."""

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.config import Config
from tests.server.client import Answer, HttpClient
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import wait_status
from tests.server.peer import Peer

SECRETS = {
    "WANSTREAM_TOKEN": "the-viewers-9f31",
    "WANSTREAM_VIEW_TOKEN": "the-onlookers-2b77",
    "WANSTREAM_ADMIN_TOKEN": "the-operators-c04d",
    "WANSTREAM_TURN_SECRET": "the-relays-88ae",
    "WANSTREAM_PUBLISH_TOKEN": "the-audiences-1c3d",
    "HF_TOKEN": "hf_TheHubs5d1cAAAA",
    "CIVITAI_API_TOKEN": "the-styles-71e9",
    "CLOUDFLARE_TURN_KEY_ID": "the-cloud-key-30ab",
    "CLOUDFLARE_TURN_KEY_API_TOKEN": "the-cloud-e5f6",
    "TWILIO_ACCOUNT_SID": "the-account-6d2f",
    "TWILIO_AUTH_TOKEN": "the-phones-aa10",
}
MORE = {
    "PIPELINE": "longlive",
    "WANSTREAM_TURN_URLS": "turn:127.0.0.1:9",
    "WANSTREAM_LOG_LEVEL": "debug",
    "VERBOSE_LOGGING": "1",
    "WANSTREAM_LOCKED": "on",
    "WANSTREAM_PUBLISH": "http://127.0.0.1:9/whip",
    "WANSTREAM_MAX_SESSIONS": "3",
}
TOLD = (
    *("/metrics", "/health", "/ready", "/openapi.json", "/", "/api/v1/hardware/info"),
    *("/api/v1/pipeline/status", "/api/v1/pipelines/schemas", "/api/v1/models/status?pipeline_id=longlive"),
    *("/api/v1/loras", "/api/v1/session/metrics", "/api/v1/osc/status", "/api/v1/logs/tail?lines=1000"),
    *("/api/v1/logs/current", "/api/v1/no/such/address"),
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class Operator(HttpClient):
    """With the admin token."""

    def request(self, method: str, path: str, **options: Any) -> Answer:
        headers = bearer(SECRETS["WANSTREAM_ADMIN_TOKEN"]) | (options.pop("headers", None) or {})
        return super().request(method, path, headers=headers, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    process = DoubleProcess(tmp_path_factory.mktemp("secrets"), SECRETS | MORE)
    process.client = Operator(process.url)
    yield process
    process.stop()


async def used(server: DoubleProcess) -> list[str]:
    """Use all that has to do with secrets, rightly and wrongly; what secrets were made by that."""
    await wait_status(server.client, "loaded")
    anybody = HttpClient(server.url)
    for token in SECRETS.values():
        for path in (f"/?token={token}", f"/watch?stream=main&token={token}"):
            await anybody.call("GET", path)
            await anybody.call("GET", path, headers=bearer(f"{token} "))
    relays = await server.client.call("GET", "/api/v1/webrtc/ice-servers")
    stream = await server.client.call(
        "POST", "/api/v1/streams", json_body={"private": True, "parameters": {"prompts": "a boat"}}
    )
    made: dict[str, Any] = stream.json()
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": [{"text": "a", "weight": 1.0}]})
        await peer.wait_frames(2)
        for token in made["tokens"].values():
            await anybody.call("GET", f"/api/v1/streams/{made['id']}/frame?token={token}")
            await anybody.call("POST", f"/whip/{made['id']}", body=b"v=0", headers=bearer(token))
    await server.client.call("DELETE", f"/api/v1/streams/{made['id']}")
    credentials = [each["credential"] for each in relays.json()["iceServers"] if each["credential"]]
    assert credentials
    return [*made["tokens"].values(), *credentials]


async def test_no_secret_is_logged_or_told(server: DoubleProcess) -> None:
    further = await used(server)

    answers = {path: (await server.client.call("GET", path)).text for path in TOLD}
    files = {path.name: path.read_text() for path in (server.home / "logs").iterdir()}
    told = {**answers, **files, "console": server.log}

    for log in (server.log, answers["/api/v1/logs/current"], *files.values()):
        assert log.count('"GET /watch ') >= len(SECRETS)  # what was asked is in there
    found = [
        (where, secret)
        for where, text in told.items()
        for secret in (*SECRETS.values(), *further)
        if secret in text
    ]
    assert found == []


async def test_no_secret_is_in_the_settings_text() -> None:
    config = Config.from_env(SECRETS | MORE)

    shown = repr(config)

    assert config.secrets.access_token == SECRETS["WANSTREAM_TOKEN"]
    assert [secret for secret in SECRETS.values() if secret in shown] == []
