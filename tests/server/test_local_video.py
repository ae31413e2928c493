"""NDI through a real server: one stream shown to the network, another fed from it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, sessions
from tests.server.peer import Peer, until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    """A server whose NDI looks for senders on this machine, without mDNS."""
    directory = tmp_path_factory.mktemp("ndi")
    config = {"ndi": {"networks": {"ips": "127.0.0.1"}}}
    (directory / "ndi-config.v1.json").write_text(json.dumps(config))
    env = {"NDI_CONFIG_DIR": str(directory), "WANSTREAM_MAX_SESSIONS": "4"}
    process = DoubleProcess(tmp_path_factory.mktemp("local-video"), env)
    yield process
    process.stop()


async def put_sink(server: DoubleProcess, stream: str | None, kind: str, body: Any) -> tuple[int, Any]:
    path = f"/api/v1/streams/{stream}/sinks/{kind}"
    answer = await server.client.call("PUT", path, json_body=body)
    return answer.status, answer.json()


async def test_one_stream_s_pictures_are_another_one_s_input_by_ndi(server: DoubleProcess) -> None:
    server.set_faults(chunk_delay_s=0.05)
    await load(server.client, "longlive", {"height": 96, "width": 128})
    async with Peer(server.client) as shown, Peer(server.client, direction="recvonly") as fed:
        await shown.connect({"prompts": [{"text": "a"}], "output_sinks": {"ndi": {"enabled": True}}})
        await shown.wait_frames(5)
        name = f"wanstream ({shown.session_id})"
        await fed.connect({"input_source": {"source_type": "ndi", "source_name": name}})

        async def arrive() -> bool:
            own = (await sessions(server.client))[fed.session_id or ""]
            return bool(own["frames_in"] > 20)

        await until(arrive, 30, "pictures by NDI")
        await until(lambda: any(c["video_frames"] for c in server.chunks()), 30, "a chunk of them")
        metrics = (await server.client.call("GET", "/metrics")).text
        status, state = await put_sink(server, shown.session_id, "ndi", {"enabled": True, "name": "stage"})
        senders = (await server.client.call("GET", "/api/v1/local-video/ndi/senders")).json()["senders"]

        assert (status, state["enabled"], state["kind"], state["name"]) == (200, True, "ndi", "stage")
        assert 'wanstream_ingest_frames_total{kind="ndi"} ' in metrics
        assert [entry.partition("(")[2] for entry in senders] == ["stage)"]
        assert (await put_sink(server, shown.session_id, "ndi", {"enabled": False}))[1]["enabled"] is False
        shown_now = len(shown.frames)
        await shown.wait_frames(shown_now + 5)  # its viewer goes on


async def test_what_this_machine_cannot_do_is_said(server: DoubleProcess) -> None:
    await load(server.client, "longlive", {"height": 96, "width": 128})
    hardware = (await server.client.call("GET", "/api/v1/hardware/info")).json()
    async with Peer(server.client) as peer:
        await peer.connect({"spout_sender": {"enabled": True, "name": "X"}})
        answers = {
            "spout": await put_sink(server, peer.session_id, "spout", {"enabled": True}),
            "smoke": await put_sink(server, peer.session_id, "smoke", {"enabled": True}),
            "stream": await put_sink(server, "nobody", "ndi", {"enabled": True}),
            "body": await put_sink(server, peer.session_id, "ndi", {"enabled": "perhaps"}),
        }
        await until(lambda: peer.messages, 30, "what was wrong with the offer's parameters")
        [error] = peer.messages[0]["errors"]

    assert hardware["ndi"] == {"available": True, "reason": None, "install_hint": None}
    assert hardware["spout_available"] is hardware["spout"]["available"] is False
    assert {name: status for name, (status, _) in answers.items()} == {
        **{"spout": 400, "smoke": 404, "stream": 404, "body": 422}
    }
    assert "Spout is only available on Windows" in answers["spout"][1]["detail"]
    assert (error["loc"], error["type"]) == (["spout_sender"], "unavailable")
