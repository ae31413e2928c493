"""The server that random input is sent to, and both kinds of input beside its streams."""

import asyncio
from pathlib import Path

from tests.fuzz.channel import fuzz_channel
from tests.fuzz.http_api import ENDS_STREAMS, fuzz_http
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, sessions
from tests.server.peer import Peer, until

_NOBODY = "http://127.0.0.1:9"  # the discard port: no model hub answers there


async def start_server(home: Path) -> DoubleProcess:
    """A gateway in front of the double, which reaches no hub; peers that do not connect go after 5 s."""
    return await asyncio.to_thread(DoubleProcess, home, {"HF_ENDPOINT": _NOBODY}, connect_timeout_s=5)


async def fuzz_beside_stream(server: DoubleProcess, seconds: float, seed: int) -> None:
    """Random requests while somebody watches, whose stream goes on; then those that end streams.

    AssertionError where an answer is wrong, the stream stops, an error is logged, or a session stays.
    """
    await load_small(server)
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": ["a"]})
        await peer.wait_frames(5)
        await fuzz_http(server.url, server.home, seconds * 2 / 3, seed, without=ENDS_STREAMS)
        await peer.wait_frames(5)
        assert not [m for m in peer.messages if m.get("type") == "stream_stopped"]
    await fuzz_http(server.url, server.home, seconds / 3, seed, only=ENDS_STREAMS)
    await until(lambda: _no_sessions(server), 30, "no session left")
    await load_small(server)
    assert_no_trace(server.log)


async def fuzz_messages(server: DoubleProcess, seconds: float, seed: int) -> int:
    """Random messages; how many. AssertionError as in `fuzz_channel`, or when an error is logged."""
    await load_small(server)
    try:
        sent = await fuzz_channel(server.client, server.pid, seconds, seed)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{server.log[-6000:]}") from error
    assert_no_trace(server.log)
    return sent


def assert_no_trace(log: str) -> None:
    """Asserts that no unexpected exception was logged; shows the first one."""
    before, found, after = log.partition("Traceback")
    assert not found, before[-1000:] + found + after[:3000]


async def load_small(server: DoubleProcess) -> None:
    await load(server.client, "longlive", {"height": 96, "width": 128})


async def _no_sessions(server: DoubleProcess) -> bool:
    return not await sessions(server.client)
