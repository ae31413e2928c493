"""ICE servers: where they come from, how long they hold, which of them our own peers use."""

import asyncio
import base64
import hmac
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aioice import stun
from quart import Quart
from quart_schema import QuartSchema

from gateway.config import Config, Secrets
from gateway.routes.ice import ice_blueprint
from gateway.webrtc.ice import stun_probe
from gateway.webrtc.ice.servers import STUN_SERVER, IceServers, to_rtc
from gateway.webrtc.ice.turn_credentials import TurnUrls
from streaming.errors import WanstreamError
from tests.local_http import LocalHttp, Reply, Request

TURN = {"urls": ["turn:t.example:3478?transport=udp"], "username": "u", "credential": "s3cret-credential"}
HF = Secrets(hf_token="hf_top-secret")
CLOUDFLARE = Secrets(cloudflare_key_id="key-id", cloudflare_api_token="cf_top-secret")
TWILIO = Secrets(twilio_account_sid="AC1", twilio_auth_token="tw_top-secret")


class CredentialService(LocalHttp):
    """A credential service that answers `status` and `body`, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.status = 200
        self.body: Any = {"iceServers": [TURN]}
        self.delay_s = 0.0

    async def answer(self, request: Request) -> Reply:
        await asyncio.sleep(self.delay_s)
        return Reply(self.status, json.dumps(self.body).encode())

    @property
    def turn_urls(self) -> TurnUrls:
        return TurnUrls(f"{self.url}/credentials", f"{self.url}/keys", f"{self.url}/Accounts")


@pytest.fixture
async def service() -> AsyncIterator[CredentialService]:
    async with CredentialService() as running:
        yield running


class StunServer(asyncio.DatagramProtocol):
    """Answers binding requests, or with `silent` nothing at all."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        request = stun.parse_message(data)
        answer = stun.Message(
            message_method=stun.Method.BINDING,
            message_class=stun.Class.RESPONSE,
            transaction_id=request.transaction_id,
        )
        answer.attributes["XOR-MAPPED-ADDRESS"] = addr
        if not self._silent:
            self._transport.sendto(bytes(answer), addr)


@pytest.fixture
async def start_stun() -> AsyncIterator[Callable[..., Any]]:
    transports = []

    async def start(*, silent: bool = False) -> int:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: StunServer(silent=silent), local_addr=("127.0.0.1", 0)
        )
        transports.append(transport)
        port: int = transport.get_extra_info("sockname")[1]
        return port

    yield start
    for transport in transports:
        transport.close()


async def test_without_secrets_the_list_is_the_public_stun_server() -> None:
    assert await IceServers(Secrets()).get() == [
        {"urls": ["stun:stun.l.google.com:19302"], "username": None, "credential": None}
    ]


async def test_huggingface_token_is_exchanged_as_the_service_wants_it(service: CredentialService) -> None:
    servers = await IceServers(HF, urls=service.turn_urls).get()

    assert servers == [TURN, STUN_SERVER]
    [request] = service.requests
    assert (request.method, request.target) == ("GET", "/credentials?ttl=600")
    assert request.headers["authorization"] == "Bearer hf_top-secret"


async def test_time_to_live_that_a_service_tells_wins(service: CredentialService) -> None:
    service.body = {"iceServers": [TURN], "ttl": 0.2}
    ice = IceServers(HF, urls=service.turn_urls)
    await ice.get()

    await asyncio.sleep(0.17)
    await ice.get()

    assert len(service.requests) == 2


async def test_cloudflare_key_is_exchanged_as_the_service_wants_it(service: CredentialService) -> None:
    service.body = {"iceServers": TURN}  # an object instead of a list

    servers = await IceServers(CLOUDFLARE, urls=service.turn_urls).get()

    assert servers == [TURN, STUN_SERVER]
    [request] = service.requests
    assert (request.method, request.target) == ("POST", "/keys/key-id/credentials/generate-ice-servers")
    assert request.headers["authorization"] == "Bearer cf_top-secret"
    assert json.loads(request.body) == {"ttl": 600}


async def test_twilio_account_is_exchanged_as_the_service_wants_it(service: CredentialService) -> None:
    own_stun = {"url": "stun:global.stun.twilio.com:3478", "urls": "stun:global.stun.twilio.com:3478"}
    service.body = {"ice_servers": [own_stun, TURN], "ttl": "86400"}

    servers = await IceServers(TWILIO, urls=service.turn_urls).get()

    assert servers == [{"urls": own_stun["urls"], "username": None, "credential": None}, TURN]
    [request] = service.requests
    assert (request.method, request.target) == ("POST", "/Accounts/AC1/Tokens.json")
    assert request.headers["authorization"] == "Basic QUMxOnR3X3RvcC1zZWNyZXQ="


@pytest.mark.parametrize(
    ("secrets", "path"),
    [
        (
            replace(HF, cloudflare_key_id="k", cloudflare_api_token="c", twilio_account_sid="s"),
            "/credentials",
        ),
        (replace(CLOUDFLARE, twilio_account_sid="s", twilio_auth_token="t"), "/keys/"),
        (replace(TWILIO, cloudflare_key_id="a key without its token"), "/Accounts/"),
    ],
)
async def test_first_service_with_complete_secrets_is_asked(
    service: CredentialService, secrets: Secrets, path: str
) -> None:
    await IceServers(secrets, urls=service.turn_urls).get()

    assert [r.target.startswith(path) for r in service.requests] == [True]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"error": "unauthorized"}),
        (500, {"iceServers": [TURN]}),
        (302, {"iceServers": [TURN]}),
        (200, {"error": "no list"}),
        (200, {"iceServers": []}),
        (200, {"iceServers": "turn:t.example"}),
        (200, {"iceServers": [{"urls": ["https://t.example"]}, {"urls": 7}, 7, {}]}),
        (200, [TURN]),
        (200, "text"),
    ],
)
async def test_unusable_answer_leaves_the_stun_server(
    service: CredentialService, status: int, body: Any
) -> None:
    service.status, service.body = status, body

    assert await IceServers(HF, urls=service.turn_urls).get() == [STUN_SERVER]
    assert len(service.requests) == 1


async def test_service_that_is_down_leaves_the_stun_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"

        assert await IceServers(HF, urls=TurnUrls(huggingface=url)).get() == [STUN_SERVER]


async def test_failed_service_is_not_asked_again_at_once(service: CredentialService) -> None:
    service.status = 401
    ice = IceServers(HF, urls=service.turn_urls)

    await ice.get()
    await ice.get()

    assert len(service.requests) == 1


async def test_credentials_are_kept_while_they_are_fresh(service: CredentialService) -> None:
    ice = IceServers(HF, urls=service.turn_urls)

    first = await ice.get()
    second = await ice.get()

    assert first == second
    assert len(service.requests) == 1


async def test_callers_at_the_same_time_share_one_request(service: CredentialService) -> None:
    service.delay_s = 0.1
    ice = IceServers(HF, urls=service.turn_urls)

    lists = await asyncio.gather(*(ice.get() for _ in range(5)))

    assert lists == [[TURN, STUN_SERVER]] * 5
    assert len(service.requests) == 1


async def test_credentials_are_renewed_before_they_expire(service: CredentialService) -> None:
    service.body = {"ice_servers": [TURN], "ttl": 1}
    ice = IceServers(TWILIO, urls=service.turn_urls)
    await ice.get()

    service.body = {"ice_servers": [TURN | {"credential": "newer"}], "ttl": 1}
    await asyncio.sleep(0.85)
    renewed = await ice.get()

    assert renewed[0]["credential"] == "newer"
    assert len(service.requests) == 2


async def test_expired_credentials_are_not_handed_out(service: CredentialService) -> None:
    service.body = {"ice_servers": [TURN], "ttl": 0.2}
    ice = IceServers(TWILIO, urls=service.turn_urls)
    await ice.get()

    service.status = 500
    await asyncio.sleep(0.25)

    assert await ice.get() == [STUN_SERVER]


async def test_changing_an_answer_does_not_change_the_next_one(service: CredentialService) -> None:
    ice = IceServers(HF, urls=service.turn_urls)

    (await ice.get())[0]["urls"].clear()

    assert await ice.get() == [TURN, STUN_SERVER]


async def test_logs_hold_no_secret(service: CredentialService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for secrets in (HF, CLOUDFLARE, TWILIO):
        for status in (200, 401):
            service.status = status
            await IceServers(secrets, urls=service.turn_urls).get()

    assert "401" in caplog.text
    assert "secret" not in caplog.text


async def test_explicit_list_wins_and_is_taken_as_it_is(service: CredentialService, tmp_path: Path) -> None:
    env = {
        "WANSTREAM_HOME": str(tmp_path),
        "HF_TOKEN": "hf_top-secret",
        "WANSTREAM_TURN_CREDENTIALS_URL": f"{service.url}/credentials",
        "WANSTREAM_ICE_SERVERS": json.dumps([{"urls": "turns:turn.local:5349", "username": "u"}]),
    }

    ice = IceServers.from_config(Config.from_env(env))

    assert await ice.get() == [{"urls": "turns:turn.local:5349", "username": "u", "credential": None}]
    assert service.requests == []


@pytest.mark.parametrize("text", ["{", "7", '["turn:t.example"]', '[{"urls": "http://t.example"}]', "null"])
def test_explicit_list_that_cannot_be_used_is_refused_with_an_example(text: str, tmp_path: Path) -> None:
    config = Config.from_env({"WANSTREAM_HOME": str(tmp_path), "WANSTREAM_ICE_SERVERS": text})

    with pytest.raises(WanstreamError, match=r"WANSTREAM_ICE_SERVERS must be a JSON list such as"):
        IceServers.from_config(config)


async def test_servers_for_viewers_alone_are_not_used_by_our_own_peers(
    start_stun: Callable[..., Any],
) -> None:
    ours, theirs = await start_stun(), await start_stun()
    servers = [
        {"urls": f"stun:127.0.0.1:{ours}"},
        {"urls": f"turn:127.0.0.1:{theirs}", "username": "u", "credential": "c", "clientOnly": True},
    ]
    config = Config.from_env({"WANSTREAM_ICE_SERVERS": json.dumps(servers)})
    ice = IceServers.from_config(config)

    await ice.probe()

    assert [server.urls for server in ice.for_server().iceServers or []] == [[f"stun:127.0.0.1:{ours}"]]
    assert [server["urls"] for server in await ice.get()] == [server["urls"] for server in servers]
    assert all(server.keys() == {"urls", "username", "credential"} for server in await ice.get())


async def test_credentials_of_a_shared_secret_follow_what_is_listed(service: CredentialService) -> None:
    env = {
        "HF_TOKEN": "hf_top-secret",
        "WANSTREAM_TURN_CREDENTIALS_URL": f"{service.url}/credentials",
        "WANSTREAM_ICE_SERVERS": '[{"urls": "stun:stun.local:3478"}]',
        "WANSTREAM_TURN_SECRET": "north",
        "WANSTREAM_TURN_URLS": "turn:a:3478, turns:a:5349",
        "WANSTREAM_TURN_TTL_S": "600",
    }

    listed, made = await IceServers.from_config(Config.from_env(env)).get()

    expires = int(made["username"].partition(":")[0])
    digest = hmac.digest(b"north", made["username"].encode(), "sha1")
    assert listed["urls"] == "stun:stun.local:3478"
    assert made["urls"] == ["turn:a:3478", "turns:a:5349"]
    assert 500 < expires - time.time() <= 600
    assert base64.b64decode(made["credential"]) == digest
    assert service.requests == []


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"WANSTREAM_TURN_SECRET": "s"}, "belong together"),
        ({"WANSTREAM_TURN_URLS": "turn:a"}, "belong together"),
        ({"WANSTREAM_TURN_SECRET": "s", "WANSTREAM_TURN_URLS": "a:3478"}, "comma list of turn:"),
        ({"WANSTREAM_TURN_SECRET": "s", "WANSTREAM_TURN_URLS": "turn:a,http://b"}, "comma list of turn:"),
        ({"WANSTREAM_TURN_SECRET": "s", "WANSTREAM_TURN_URLS": "stun:a"}, "comma list of turn:"),
        ({"WANSTREAM_ICE_TRANSPORT_POLICY": "relay"}, "there is none"),
        (
            {"WANSTREAM_ICE_TRANSPORT_POLICY": "relay", "WANSTREAM_ICE_SERVERS": '[{"urls": "stun:a"}]'},
            "there is none",
        ),
    ],
    ids=str,
)
def test_relays_that_cannot_be_used_are_refused(env: dict[str, str], problem: str) -> None:
    with pytest.raises(WanstreamError, match=problem) as caught:
        IceServers.from_config(Config.from_env(env))

    assert "'s'" not in str(caught.value)


async def test_own_peers_use_only_servers_that_answer(start_stun: Callable[..., Any]) -> None:
    answering, silent = await start_stun(), await start_stun(silent=True)
    servers: list[dict[str, Any]] = [
        {"urls": [f"stun:127.0.0.1:{silent}"], "username": None, "credential": None},
        {"urls": f"turn:127.0.0.1:{answering}", "username": "u", "credential": "c"},
    ]
    ice = IceServers(Secrets(), explicit=servers)

    before = ice.for_server().iceServers
    await ice.probe()
    after = ice.for_server().iceServers

    assert before == []
    assert after is not None
    assert [(s.urls, s.username, s.credential) for s in after] == [
        ([f"turn:127.0.0.1:{answering}"], "u", "c")
    ]
    assert await ice.get() == servers


async def test_background_work_fetches_probes_and_ends(
    service: CredentialService, start_stun: Callable[..., Any]
) -> None:
    url = f"stun:127.0.0.1:{await start_stun()}"
    service.body = {"iceServers": [{"urls": url}]}
    ice = IceServers(HF, urls=service.turn_urls)

    ice.start()
    for _ in range(500):
        if ice.for_server().iceServers:
            break
        await asyncio.sleep(0.01)
    await ice.close()

    assert [s.urls for s in ice.for_server().iceServers or ()] == [[url]]


async def test_server_that_accepts_tcp_answers(service: CredentialService) -> None:
    assert await stun_probe.answers(f"turn:127.0.0.1:{service.port}?transport=tcp")


@pytest.mark.parametrize("scheme", ["stun:127.0.0.1:{}", "turn:127.0.0.1:{}?transport=tcp"])
async def test_closed_port_does_not_answer(scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))

        assert not await stun_probe.answers(scheme.format(unused.getsockname()[1]))


@pytest.mark.parametrize(
    "url", ["stun:", "http://127.0.0.1", "stun:no-such-host.invalid:1", "turn:" + "a" * 300]
)
async def test_unusable_address_does_not_answer(url: str) -> None:
    assert not await stun_probe.answers(url)


def test_entry_without_reachable_url_is_left_out() -> None:
    assert (
        to_rtc([TURN, STUN_SERVER], {STUN_SERVER["urls"][0]}).iceServers
        == to_rtc([STUN_SERVER], {STUN_SERVER["urls"][0]}).iceServers
    )


async def test_route_answers_the_list_and_forbids_storing_it(service: CredentialService) -> None:
    app = Quart(__name__)
    QuartSchema(app)
    app.register_blueprint(ice_blueprint(IceServers(HF, urls=service.turn_urls)))

    response = await app.test_client().get("/api/v1/webrtc/ice-servers")

    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert await response.get_json() == {"iceServers": [TURN, STUN_SERVER], "iceTransportPolicy": "all"}
