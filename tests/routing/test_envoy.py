"""Two gateways behind Envoy: affinity, and a full one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.gateways import PROMPTS, fleet, loaded
from tests.routing.envoy import Affinity, Envoy, envoy
from tests.server.client import Answer, HttpClient
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import sessions
from tests.server.peer import Peer

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


class CookieClient(HttpClient):
    """With a jar for the router's cookie, as browsers have one."""

    cookie = ""

    def request(self, method: str, path: str, **options: Any) -> Answer:
        headers = {"Cookie": self.cookie} if self.cookie else {}
        answer = super().request(method, path, **{**options, "headers": headers})
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].split(";")[0]
        return answer


@dataclass
class Routed:
    gateways: Sequence[DoubleProcess]
    envoy: Envoy

    async def holder(self, session_id: str | None) -> DoubleProcess:
        """The gateway that has a session."""
        found = [g for g in self.gateways if await _has(g, str(session_id))]
        assert len(found) == 1, f"{len(found)} gateways have {session_id}"
        return found[0]

    def other(self, gateway: DoubleProcess) -> DoubleProcess:
        return next(each for each in self.gateways if each is not gateway)


async def _has(gateway: DoubleProcess, session_id: str) -> bool:
    try:
        return session_id in await sessions(gateway.client)
    except OSError:  # it was killed
        return False


@asynccontextmanager
async def routed(directory: Path, affinity: Affinity = "cookie", **settings: str) -> AsyncIterator[Routed]:
    """Fresh gateways, of which a test may end one."""
    with fleet(directory, settings=settings) as gateways:
        await loaded(gateways)
        with envoy(directory, [gateway.port for gateway in gateways], affinity) as found:
            yield Routed(gateways, found)


async def test_clients_with_and_without_cookies_and_a_full_gateway(tmp_path: Path) -> None:
    async with routed(tmp_path, WANSTREAM_MAX_SESSIONS="2") as place:
        peers = [Peer(CookieClient(place.envoy.url)) for _ in range(3)] + [Peer(place.envoy.client)]
        try:
            for peer in peers:
                answer = await peer.offer(PROMPTS, candidates=False)
                assert answer.status == 200, answer.text
                statuses = {(await peer.trickle([])).status for _ in range(4)}
                await peer.trickle()
                await peer.connected()
                await peer.wait_frames(2)
                assert statuses == {204}
            places = [await place.holder(peer.session_id) for peer in peers]
            # A cookie that leads to a full gateway: the other one is tried, and has no place either now.
            late = Peer(peers[0].client)
            full = await late.offer(PROMPTS)
            await late.close()
            # A place becomes free at the other gateway, which takes the viewer over.
            leaver = next(p for p, g in zip(peers, places, strict=True) if g is not places[0])
            await leaver.delete()
            moved = Peer(peers[0].client)
            again = await moved.offer(PROMPTS)
            new_place = await place.holder(moved.session_id)
            stays = await moved.trickle([])
            await moved.close()
        finally:
            await asyncio.gather(*(peer.close() for peer in peers))

    assert sorted(gateway.port for gateway in places) == sorted(2 * [g.port for g in place.gateways])
    assert full.status == 503
    assert (again.status, stays.status) == (200, 204)
    assert new_place is place.other(places[0])


async def test_the_chart_s_policy_finds_a_place_and_the_session_again(tmp_path: Path) -> None:
    """By its cookie's hash a viewer always reaches the gateway that was full; this one passes requests on."""
    async with routed(tmp_path, "hash", WANSTREAM_MAX_SESSIONS="1") as place:
        client = CookieClient(place.envoy.url)
        async with Peer(client) as first, Peer(client) as second, Peer(client) as third:
            await first.connect(PROMPTS)
            await first.wait_frames(2)
            await second.offer(PROMPTS, candidates=False)
            trickled = await second.trickle()
            await second.connected()
            await second.wait_frames(2)
            places = [await place.holder(peer.session_id) for peer in (first, second)]
            full = await third.offer(PROMPTS)

    assert trickled.status == 204
    assert places[1] is place.other(places[0])
    assert full.status == 503


async def test_many_viewers_come_and_go(tmp_path: Path) -> None:
    """Some of the 200 a minute that a fleet has to take; benchmarks/fleet.py takes as many as told."""
    async with routed(tmp_path) as place:
        statuses: list[int] = []
        for _ in range(20):
            async with Peer(CookieClient(place.envoy.url)) as peer:
                statuses.append((await peer.offer(PROMPTS)).status)
                statuses.append((await peer.trickle()).status)
                statuses.append((await peer.delete()).status)
        left = [await sessions(gateway.client) for gateway in place.gateways]
        opened_there = [len(gateway.log.split("Session opened")) - 1 for gateway in place.gateways]

    assert statuses == [200, 204, 204] * 20
    assert left == [{}, {}]
    assert opened_there == [10, 10]
