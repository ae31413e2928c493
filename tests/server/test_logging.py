"""What a stream leaves in the log: its id in every line, its prompts only where they were asked for."""

import json
from pathlib import Path

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until

SIZE = {"height": 96, "width": 128}
PRIVATE = "the moth in my diary"


async def stream_with_changes(server: DoubleProcess) -> str:
    """A stream that begins with a prompt, changes it and ends; its session's id."""
    await load(server.client, "longlive", SIZE)
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": [{"text": PRIVATE, "weight": 1.0}]})
        await peer.wait_frames(1)
        peer.send({"prompts": [{"text": f"{PRIVATE}, at night"}], "noise_scale": 0.25})
        await until(lambda: server.chunks()[-1]["parameters"].get("noise_scale") == 0.25, 30, "used")
        peer.send({"paused": True})
        await until(lambda: f"[{peer.session_id}] Paused" in text_of(server), 30, "paused")
        await peer.delete()
    return str(peer.session_id)


def text_of(server: DoubleProcess) -> str:
    """The log as text lines, also of a server that writes JSON."""
    lines = server.log.splitlines()
    if not lines[0].startswith("{"):
        return server.log
    return "\n".join(f"[{line['session']}] {line['message']}" for line in map(json.loads, lines))


async def test_changed_parameters_are_named_without_their_values(double_server: DoubleProcess) -> None:
    session = await stream_with_changes(double_server)

    about = [line for line in double_server.log.splitlines() if session in line]
    changes = [line.split(" changes ")[1] for line in about if " changes " in line]
    assert "prompts" in changes[0].split(", ")
    assert changes[1] == "noise_scale, prompts"
    assert PRIVATE not in double_server.log


async def test_json_lines_carry_the_session_and_debug_shows_values(tmp_path: Path) -> None:
    server = DoubleProcess(tmp_path, {"WANSTREAM_LOG_FORMAT": "json", "WANSTREAM_LOG_LEVEL": "debug"})
    try:
        session = await stream_with_changes(server)
    finally:
        server.stop()

    lines = [json.loads(line) for line in server.log.splitlines()]
    assert {frozenset(line) for line in lines} == {
        frozenset(("time", "level", "logger", "message", "session"))
    }
    assert {line["level"] for line in lines if PRIVATE in line["message"]} == {"DEBUG"}
    assert [line for line in lines if session in line["message"]] == []
    about = {line["message"] for line in lines if line["session"] == session}
    assert {"Session opened for longlive", "Connection connected", "Closing the session"} <= about
