"""The UDP ports that media use, and the public address of a server behind a NAT."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.config import Config
from streaming.errors import WanstreamError
from tests.server.client import Answer
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.narrow_link import run_where_we_are_root
from tests.server.nat import nat
from tests.server.peer import Peer

FIRST = 30_000 + os.getpid() % 10_000 * 3  # another one for each process that tests
PORTS = range(FIRST, FIRST + 3)
RANGE = f"{PORTS[0]}-{PORTS[-1]}"


def candidates(answer: Answer) -> list[tuple[str, int, str]]:
    """(address, port, type) of those in an answer."""
    found = re.findall(r"a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ (\S+)", answer.json()["sdp"])
    return [(address, int(port), kind) for address, port, kind in found]


async def test_media_use_the_ports_of_the_range_until_all_are_taken(tmp_path: Path) -> None:
    server = DoubleProcess(tmp_path, {"WANSTREAM_MEDIA_PORTS": RANGE, "WANSTREAM_MAX_SESSIONS": "8"})
    peers = [Peer(server.client) for _ in range(len(PORTS) + 1)]
    try:
        await load(server.client, "longlive", {"height": 96, "width": 128})
        answers = [await peer.offer() for peer in peers]
        await peers[0].connected()
        await peers[0].wait_frames(3)
        await peers[0].delete()
        freed = await Peer(server.client).offer()
    finally:
        await asyncio.gather(*(peer.close() for peer in peers))
        server.stop()

    used = [[port for _, port, _ in candidates(answer)] for answer in answers[:-1]]
    assert all(ports and set(ports) <= set(PORTS) for ports in used)
    assert answers[-1].status == 503
    assert f"({RANGE}) are in use" in answers[-1].json()["detail"]
    assert answers[-1].headers["retry-after"] == "5"
    assert freed.status == 200


if os.geteuid() == 0:

    async def test_a_viewer_beyond_the_nat_reaches_the_advertised_address(tmp_path: Path) -> None:
        with nat(PORTS) as way:
            env = {"WANSTREAM_MEDIA_PORTS": RANGE, "WANSTREAM_PUBLIC_IP": way.public}
            server = DoubleProcess(tmp_path, env, options=["--host", "0.0.0.0"])
            try:
                await load(server.client, "longlive", {"height": 96, "width": 128})
                async with Peer(server.client) as peer:
                    answer = await peer.offer()
                url = f"http://{way.public}:{server.port}"
                seen = await asyncio.to_thread(
                    _first_line, way.at_viewer(sys.executable, "-m", "tests.server.peer", url, "hidden")
                )
            finally:
                server.stop()

        mapped = [
            port for address, port, kind in candidates(answer) if (address, kind) == (way.public, "srflx")
        ]
        behind = [
            port for address, port, kind in candidates(answer) if (address, kind) == (way.private, "host")
        ]
        assert mapped == behind
        assert re.fullmatch(r"[0-9a-f-]{36}", seen), "the viewer beyond the NAT saw no pictures"

else:

    def test_as_root_of_a_namespace() -> None:
        """The test above, in namespaces of its own."""
        run_where_we_are_root(Path(__file__))


@pytest.mark.parametrize(
    "env",
    [
        {"WANSTREAM_MEDIA_PORTS": text}
        for text in ("80-90", "50100-50000", "50000-70000", "many", "50000-", "-50000")
    ]
    + [{"WANSTREAM_PUBLIC_IP": text} for text in ("video.example.org", "203.0.113.7/24", "1.2.3")],
    ids=str,
)
def test_ports_and_addresses_that_cannot_be_used_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(WanstreamError, match=next(iter(env))):
        Config.from_env(env)


def _first_line(command: Sequence[str]) -> str:
    """What a viewer prints once it sees pictures; empty when it ended before."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            return process.stdout.readline().strip()
        finally:
            process.terminate()
