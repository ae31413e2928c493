"""Video files as sources, over REST: played to a stream, exchanged while it runs, refused."""

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until
from tests.unit.test_file_source import write_video


async def test_a_file_feeds_a_stream_and_is_exchanged_while_it_runs(double_server: DoubleProcess) -> None:
    client = double_server.client
    double_server.reset_faults()
    await load(client, "longlive", {"height": 96, "width": 160})
    double_server.assets.mkdir(parents=True, exist_ok=True)
    for name in ("one.mp4", "two.mkv"):
        write_video(double_server.assets / name)
    (double_server.assets / "broken.mp4").write_text("no video")
    async with await Peer(client, direction="recvonly").connect({"prompts": "a boat"}) as peer:
        path = f"/api/v1/streams/{peer.session_id}/source"

        sources = []
        for name in ("one.mp4", "two.mkv"):
            before = len(double_server.chunks())
            answer = await client.call("PUT", path, json_body={"kind": "file", "path": name})
            sources.append((answer.status, answer.json()["source"]["name"]))
            await until(lambda n=before: _fed(double_server, n), 30, f"chunks from {name}")
        broken = await client.call("PUT", path, json_body={"kind": "file", "path": "broken.mp4"})
        still = (await client.call("GET", path.removesuffix("/source"))).json()["source"]
        await client.call("DELETE", path)
        gone = (await client.call("GET", path.removesuffix("/source"))).json()["source"]

    assert sources == [(200, "one.mp4"), (200, "two.mkv")]
    assert (broken.status, "cannot be decoded" in broken.json()["detail"]) == (400, True)
    assert (still["kind"], still["name"], still["state"]) == ("file", "two.mkv", "live")
    assert gone["kind"] == "none"


def _fed(server: DoubleProcess, before: int) -> bool:
    """Whether two more chunks have taken pictures."""
    return sum(chunk["video_frames"] is not None for chunk in server.chunks()[before:]) >= 2
