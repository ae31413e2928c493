"""Streams through a real TURN server, with credentials from the service that hands them out."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aioice.ice import CandidatePair
from aiortc import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy

from tests.local_http import LocalHttp, Reply, Request
from tests.server.browser import chromium, opened, start
from tests.server.coturn import SECRET, TurnServer
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until

TOKEN = "hf_token-of-the-operator"
PROMPTS = {"prompts": [{"text": "a", "weight": 1.0}]}
TRANSPORTS = pytest.mark.parametrize("transport", ["udp", "tcp"])

KEEP_CONNECTIONS = """window.connections = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...given) { super(...given); window.connections.push(this); }
};"""
CANDIDATES_IN_USE = """async () => {
    const report = [...(await window.connections.at(-1).getStats()).values()];
    const pairs = report.filter(entry => entry.type === "candidate-pair" && entry.nominated);
    return pairs.map(pair => report.find(entry => entry.id === pair.localCandidateId).candidateType);
}"""

StartGateway = Callable[[Mapping[str, str]], Any]


@pytest.fixture(scope="module")
def turn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TurnServer]:
    server = TurnServer(tmp_path_factory.mktemp("turn"))
    yield server
    server.stop()


class CredentialService(LocalHttp):
    """The service that gives TURN credentials for a Hugging Face token: new ones at each request.

    ttl: validity of the credentials in seconds, also told in the answer. given: what it handed out so far.
    """

    def __init__(self, turn: TurnServer, transport: str = "udp") -> None:
        super().__init__()
        self.ttl = 600
        self.given: list[dict[str, Any]] = []
        self._turn = turn
        self._transport = transport

    async def answer(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Reply(401, b'{"detail": "unknown token"}')
        name = f"viewer-{len(self.given)}"
        self.given.append(self._turn.ice_server(self._transport, name=name, valid_s=self.ttl))
        return Reply(200, json.dumps({"iceServers": self.given[-1:], "ttl": self.ttl}).encode())

    @property
    def environment(self) -> dict[str, str]:
        """Settings of a gateway that uses this service."""
        return {"HF_TOKEN": TOKEN, "WANSTREAM_TURN_CREDENTIALS_URL": f"{self.url}/credentials"}


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """Starts a talkative gateway with these settings, and with longlive loaded; stopping it is checked."""
    started: list[DoubleProcess] = []

    async def start(env: Mapping[str, str]) -> DoubleProcess:
        gateway = await asyncio.to_thread(DoubleProcess, tmp_path, {"VERBOSE_LOGGING": "1", **env})
        started.append(gateway)
        await load(gateway.client, "longlive", {"height": 96, "width": 128})
        await until(lambda: "STUN and TURN addresses answer" in gateway.log, 30, "TURN server probed")
        return gateway

    yield start
    for gateway in started:
        await asyncio.to_thread(gateway.stop)


async def listed_servers(gateway: DoubleProcess) -> list[dict[str, Any]]:
    answer = await gateway.client.call("GET", "/api/v1/webrtc/ice-servers")
    assert answer.status == 200, answer.text
    return list(answer.json()["iceServers"])


async def relay_only_peer(gateway: DoubleProcess) -> Peer:
    """What a page behind a strict firewall does: nothing but relayed candidates."""
    servers = [
        RTCIceServer(entry["urls"], entry["username"], entry["credential"])
        for entry in await listed_servers(gateway)
        if entry["credential"] is not None
    ]
    configuration = RTCConfiguration(servers, iceTransportPolicy=RTCIceTransportPolicy.RELAY)
    return Peer(gateway.client, direction="recvonly", configuration=configuration)


def used_pair(peer: Peer) -> CandidatePair:
    """The pair of candidates between which the video flows."""
    ice = peer.pc.getTransceivers()[0].receiver.transport.transport
    [pair] = ice._connection._nominated.values()  # aiortc tells it in no other way
    assert isinstance(pair, CandidatePair)
    return pair


async def stream_through_relay(gateway: DoubleProcess) -> None:
    """Receive frames with a relay-only peer. Asserts that they came through the relay."""
    async with await relay_only_peer(gateway) as peer:
        await peer.connect(PROMPTS)
        frames = await peer.wait_frames(20)
        pair = used_pair(peer)

    assert [frame.number for frame in frames] == sorted({frame.number for frame in frames})
    assert pair.local_candidate.type == "relay"


def expiry(entry: Mapping[str, Any]) -> int:
    """Unix seconds from which on the relay refuses these credentials."""
    return int(entry["username"].partition(":")[0])


def assert_no_secret(gateway: DoubleProcess, credentials: list[dict[str, Any]]) -> None:
    """Neither on the console nor in the log files."""
    files = [path.read_text() for path in (gateway.home / "logs").glob("*.log*")]
    assert files, "no log file"
    for text in (gateway.log, *files):
        assert "STUN and TURN addresses answer" in text
        assert TOKEN not in text
        assert not [e for e in credentials if e["credential"] in text or e["username"] in text]


@TRANSPORTS
async def test_stream_flows_through_the_relay_of_the_credential_service(
    transport: str, turn: TurnServer, start_gateway: StartGateway
) -> None:
    async with CredentialService(turn, transport) as service:
        gateway = await start_gateway(service.environment)
        await stream_through_relay(gateway)

        [given] = service.given
        assert given in await listed_servers(gateway)
        user = given["username"]
        await until(lambda: f"username=<{user}>" in turn.log, 30, f"{user} in the log of the TURN server")
        assert_no_secret(gateway, service.given)


async def test_stream_flows_through_the_relay_named_in_the_environment(
    turn: TurnServer, start_gateway: StartGateway
) -> None:
    servers = [turn.ice_server("udp", name="from-the-environment")]
    gateway = await start_gateway({"WANSTREAM_ICE_SERVERS": json.dumps(servers)})

    await stream_through_relay(gateway)

    assert await listed_servers(gateway) == servers
    assert_no_secret(gateway, servers)


async def test_the_page_streams_through_the_relay_alone_with_credentials_of_the_shared_secret(
    turn: TurnServer, start_gateway: StartGateway
) -> None:
    env = {
        "WANSTREAM_TURN_SECRET": SECRET,
        "WANSTREAM_TURN_URLS": f"turn:127.0.0.1:{turn.port}",
        "WANSTREAM_ICE_TRANSPORT_POLICY": "relay",
    }
    gateway = await start_gateway(env)
    await stream_through_relay(gateway)

    async with chromium() as browser, opened(browser, gateway.url) as page:
        await page.add_init_script(KEEP_CONNECTIONS)
        await page.reload()
        await start(page, "LongLive")
        kinds = await page.evaluate(CANDIDATES_IN_USE)

    assert kinds == ["relay"]
    assert " typ relay " not in await server_candidates(gateway)
    given = [server for server in await listed_servers(gateway) if server["credential"]]
    assert_no_secret(gateway, [*given, {"username": SECRET, "credential": SECRET}])


async def server_candidates(gateway: DoubleProcess) -> str:
    async with Peer(gateway.client) as peer:
        answer = await peer.offer(PROMPTS)
        await peer.delete()
    return str(answer.json()["sdp"])


@TRANSPORTS
async def test_gateway_offers_a_relayed_candidate_of_its_own(
    transport: str, turn: TurnServer, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway({"WANSTREAM_ICE_SERVERS": json.dumps([turn.ice_server(transport)])})

    async with Peer(gateway.client) as peer:
        answer = await peer.offer(PROMPTS)

    assert " typ relay " in answer.json()["sdp"]


async def test_credentials_are_renewed_before_they_expire(
    turn: TurnServer, start_gateway: StartGateway
) -> None:
    async with CredentialService(turn) as service:
        service.ttl = 8
        gateway = await start_gateway(service.environment)

        await until(lambda: len(service.given) == 2, 2.0 * service.ttl, "credentials renewed, unasked")
        await until(lambda: time.time() > expiry(service.given[0]), service.ttl, "the first ones expired")

        assert expiry(service.given[1]) - service.ttl < expiry(service.given[0])
        assert service.given[1] in await listed_servers(gateway)
        await stream_through_relay(gateway)
        assert_no_secret(gateway, service.given)


async def test_viewer_connects_directly_where_the_relay_refuses_the_credentials(
    turn: TurnServer, start_gateway: StartGateway
) -> None:
    stale = turn.ice_server(valid_s=-60)
    gateway = await start_gateway({"WANSTREAM_ICE_SERVERS": json.dumps([stale])})

    async with Peer(gateway.client) as peer:
        answer = await peer.offer(PROMPTS)
        await peer.connected()
        await peer.wait_frames(20)

    assert " typ relay " not in answer.json()["sdp"]
    assert_no_secret(gateway, [stale])
