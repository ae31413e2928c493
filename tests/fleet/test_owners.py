"""Requests that reach a gateway which does not have the session, as those of programs without cookies do."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from playwright.async_api import Browser

from gateway.config import Config
from gateway.fleet.owners import Owners
from streaming.errors import WanstreamError
from tests.fleet.gateways import PROMPTS, fleet, loaded
from tests.server.browser import opened
from tests.server.client import Answer, HttpClient
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import sessions
from tests.server.peer import Peer
from tests.server.test_locked import PNG

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = {"Authorization": "Bearer of-the-fleet"}


class _WithToken(HttpClient):
    def request(self, method: str, path: str, **options: object) -> object:  # type: ignore[override]
        return super().request(method, path, headers=TOKEN, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[DoubleProcess]]:
    with fleet(tmp_path_factory.mktemp("owners"), settings={"WANSTREAM_TOKEN": "of-the-fleet"}) as found:
        for gateway in found:
            gateway.client = _WithToken(gateway.url)
        yield found


async def test_a_session_is_reached_through_either_gateway(gateways: Sequence[DoubleProcess]) -> None:
    await loaded(gateways)
    owner, other = gateways
    async with Peer(owner.client) as peer:
        answer = await peer.offer(PROMPTS, candidates=False)
        peer.client = other.client  # a router without affinity
        trickled = await peer.trickle()
        await peer.connected()
        await peer.wait_frames(3)
        joined = await join(other, str(peer.session_id))
        elsewhere = await sessions(other.client)
        deleted = await peer.delete()
        after = await sessions(owner.client)

    assert (trickled.status, deleted.status) == (204, 204)
    assert answer.headers["location"] == f"/api/v1/webrtc/offer/{peer.session_id}"
    assert joined == str(peer.session_id)
    assert elsewhere == {}
    assert str(peer.session_id) not in after


async def join(gateway: DoubleProcess, stream_id: str) -> str:
    """See a stream as a further viewer; the id that the answer tells."""
    async with Peer(gateway.client) as viewer:
        body = {"sdp": await viewer.offer_sdp(), "type": "offer", "streamId": stream_id}
        answer = await gateway.client.call("POST", "/api/v1/webrtc/offer", json_body=body)
        assert answer.status == 200, answer.text
        await viewer.accept(answer.json())
        await viewer.connected()
        await viewer.wait_frames(2)
        return str(answer.json()["streamId"])


async def test_a_private_stream_of_another_gateway_is_seen_with_its_own_token(
    gateways: Sequence[DoubleProcess],
) -> None:
    await loaded(gateways)
    owner, other = gateways
    made = await owner.client.call(
        "POST", "/api/v1/streams", json_body={"private": True, "parameters": PROMPTS}
    )
    stream = made.json()
    viewer = HttpClient(other.url)

    async def offer(token: str, **more: object) -> Answer:
        headers = {"Authorization": f"Bearer {token}"}
        body = {"sdp": sdp, "type": "offer", "streamId": stream["id"], **more}
        return await viewer.call("POST", "/api/v1/webrtc/offer", json_body=body, headers=headers)

    async with Peer(viewer) as peer:
        sdp = await peer.offer_sdp()
        refused = [
            await offer("somebody else's"),
            await offer(stream["tokens"]["view"], role="controller"),
            await offer(stream["tokens"]["view"], streamId=None),
        ]
        nobody = await viewer.call("POST", "/api/v1/webrtc/offer", json_body={"sdp": sdp, "type": "offer"})
        answer = await offer(stream["tokens"]["view"])
        assert answer.status == 200, answer.text
        await peer.accept(answer.json())
        await peer.connected()
        await peer.wait_frames(2)
    elsewhere = await other.client.call("GET", "/api/v1/streams")
    await owner.client.call("DELETE", f"/api/v1/streams/{stream['id']}")

    assert [each.status for each in refused] == [401, 403, 401]
    assert nobody.status == 401
    assert answer.json()["streamId"] == stream["id"]
    assert elsewhere.json()["streams"] == []


async def test_the_link_of_a_private_stream_opens_its_page_at_any_gateway(
    browser: Browser, gateways: Sequence[DoubleProcess]
) -> None:
    await loaded(gateways)
    owner, other = gateways
    made = await owner.client.call(
        "POST", "/api/v1/streams", json_body={"private": True, "parameters": PROMPTS}
    )
    stream = made.json()
    link = f"/watch?stream={stream['id']}&token="
    stranger = await HttpClient(other.url).call("GET", link + "somebody")

    async with opened(browser, f"{other.url}{link}{stream['tokens']['view']}") as page:
        await page.wait_for_selector("body[data-state=streaming]", timeout=60_000)
        shown_by = [
            len((await gateway.client.call("GET", "/api/v1/streams")).json()["streams"])
            for gateway in gateways
        ]
        others = await page.evaluate("fetch('/api/v1/pipeline/status').then(({ status }) => status)")
    await owner.client.call("DELETE", f"/api/v1/streams/{stream['id']}")

    assert stranger.status == 401
    assert shown_by == [1, 0]
    assert others == 401


async def test_the_owner_s_refusals_come_through(gateways: Sequence[DoubleProcess]) -> None:
    await loaded(gateways)
    owner, other = gateways
    async with Peer(owner.client) as peer:
        await peer.offer(PROMPTS)
        path = f"/api/v1/webrtc/offer/{peer.session_id}"
        wrong = await other.client.call("PATCH", path, json_body={"candidates": "none"})
        huge = await other.client.call("PATCH", path, body=b" " * (2 << 20))
        await peer.delete()
        gone = await other.client.call("PATCH", path, json_body={"candidates": []})
    nobody = await asyncio.to_thread(
        HttpClient(other.url).request, "PATCH", path, json_body={"candidates": []}
    )

    assert (wrong.status, huge.status, gone.status, nobody.status) == (422, 413, 404, 401)
    assert "not found" in gone.json()["detail"]


async def test_what_one_caller_is_given_is_not_sent_for_the_next(gateways: Sequence[DoubleProcess]) -> None:
    await loaded(gateways)
    owner, other = gateways
    nobody = HttpClient(other.url)
    async with Peer(owner.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(1)
        picture = f"/api/v1/streams/{peer.session_id}/frame"
        shown = await nobody.call("GET", f"{picture}?token=of-the-fleet")
        refused = await nobody.call("GET", picture)

    assert (shown.status, refused.status) == (200, 401)
    assert shown.headers["set-cookie"].startswith("wanstream_token=of-the-fleet;")


async def test_a_session_whose_gateway_is_gone_is_gone(gateways: Sequence[DoubleProcess]) -> None:
    await loaded(gateways)
    with fleet(gateways[0].home.parent / "further") as (first, second):
        await loaded([first])
        async with Peer(first.client) as peer:
            await peer.offer(PROMPTS)
            first.kill()
            peer.client = second.client
            answer = await peer.trickle()

    assert answer.status == 404
    assert "its server does not answer" in answer.json()["detail"]


async def test_pictures_are_there_for_all_gateways_of_one_directory(tmp_path: Path) -> None:
    with fleet(
        tmp_path, settings={"DAYDREAM_SCOPE_ASSETS_DIR": str(tmp_path / "shared" / "assets")}
    ) as place:
        first, second = place
        await loaded(place)
        stored = await first.client.call("POST", "/api/v1/assets?filename=a.png", body=PNG)
        listed = await second.client.call("GET", "/api/v1/assets")
        served = await second.client.call("GET", "/api/v1/assets/a.png")
        async with Peer(second.client) as peer:
            await peer.connect({**PROMPTS, "vace_ref_images": [stored.json()["path"]]})
            await peer.wait_frames(3)
            used = (await sessions(second.client)).keys()

    assert stored.status == 200
    assert [entry["path"] for entry in listed.json()["assets"]] == [stored.json()["path"]]
    assert served.body == PNG
    assert list(used) == [peer.session_id]


async def test_ids_lead_only_to_gateways_that_were_named() -> None:
    ours, theirs = Owners("10.0.0.1:8000", ["10.0.0.2:8000"]), Owners("10.0.0.2:8000", [])
    stranger, alone = Owners("10.0.0.3:8000", []), Owners(None, [])
    ids = [owners.new_id() for owners in (ours, theirs, stranger, alone)]

    assert [await ours.other(each) for each in ids] == [None, "10.0.0.2:8000", None, None]
    assert await ours.other(ids[1][:-1] + "x") is None
    assert await ours.other("main") is None
    assert await alone.other(ids[1]) is None
    assert len({each[:8] for each in ids}) == 4
    assert len({ours.new_id() for _ in range(100)}) == 100


async def test_a_name_stands_for_all_its_addresses() -> None:
    owners = Owners("10.0.0.1:8000", ["localhost:9000", "no.such.name.invalid:9000"])

    assert await owners.other(Owners("127.0.0.1:9000", []).new_id()) == "127.0.0.1:9000"


@pytest.mark.parametrize(
    "env",
    [
        {"WANSTREAM_NODE": "10.0.0.1", "WANSTREAM_PEERS": "10.0.0.2:8000"},
        {"WANSTREAM_NODE": "10.0.0.1:8000", "WANSTREAM_PEERS": "http://10.0.0.2:8000"},
        {"WANSTREAM_PEERS": "10.0.0.2:8000"},
    ],
    ids=str,
)
async def test_gateways_that_cannot_be_reached_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(WanstreamError, match="must be HOST:PORT"):
        Config.from_env(env)
