"""Recordings through the server: Scope's requests and ours, downloads, limits, what ends a take."""

import asyncio
import importlib.metadata
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, sessions
from tests.server.peer import Peer, until
from tests.takes import shown

SIZE = {"height": 96, "width": 160}
PROMPTS = {"prompts": "a boat"}
TAKES = "/api/v1/recordings"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    process = DoubleProcess(tmp_path_factory.mktemp("recorded"))
    yield process
    process.stop()


@pytest.fixture
async def server(process: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """A server with LongLive loaded, without sessions."""
    process.reset_faults()
    process.set_faults(chunk_delay_s=0.1)
    await load(process.client, "longlive", SIZE)
    yield process
    for session_id in await sessions(process.client):
        await process.client.call("DELETE", f"/api/v1/webrtc/offer/{session_id}")


async def call(server: DoubleProcess, method: str, path: str, status: int, body: Any = None) -> Any:
    """The JSON that is answered; none when there is no body."""
    answer = (
        await server.client.call(method, path, json_body=body)
        if body is not None
        else await server.client.call(method, path)
    )
    assert answer.status == status, f"{method} {path}: {answer.status} {answer.text}"
    return answer.json() if answer.body and status != 204 else None


async def recorded(server: DoubleProcess, take: str, frames: int) -> None:
    """Wait until a take has so many pictures."""

    async def enough() -> bool:
        return bool((await call(server, "GET", f"/api/v1/takes/{take}", 200))["frames"] >= frames)

    await until(enough, 30, f"{frames} pictures in {take}")


async def saved(server: DoubleProcess, path: str, directory: Path) -> Path:
    """A downloaded video."""
    answer = await server.client.call("GET", path)
    assert answer.status == 200, f"{path}: {answer.status} {answer.text}"
    file = directory / "download.mp4"
    file.write_bytes(answer.body)
    return file


async def test_scopes_requests_find_the_take_after_stop_too(server: DoubleProcess, tmp_path: Path) -> None:
    async with await Peer(server.client).connect(PROMPTS) as peer:
        path = f"{TAKES}/{peer.session_id}"

        missing = await call(server, "POST", f"{path}/stop", 404)
        started = await call(server, "POST", f"{path}/start", 200)
        again = await call(server, "POST", f"{path}/start", 200)
        await until(lambda: any(m["type"] == "recording_changed" for m in peer.messages), 30, "the event")
        take = next(m["take"] for m in peer.messages if m["type"] == "recording_changed")
        await recorded(server, take, 10)
        running = await saved(server, path, tmp_path)  # it goes on in a new take
        after = (await call(server, "GET", TAKES, 200))["takes"]
        await recorded(server, after[0]["take"], 5)
        stopped = await call(server, "POST", f"{path}/stop", 200)
        twice = await call(server, "POST", f"{path}/stop", 200)
        last = await saved(server, path, tmp_path)
        refused = await call(server, "POST", f"{path}/start?node_id=x", 400)
        unknown = await call(server, "POST", f"{TAKES}/nobody/start", 404)
        answer = await server.client.call("GET", path)

    assert missing["detail"] == f"Recording not available for session {peer.session_id}"
    assert [a["status"] for a in (started, again)] == ["started", "already_recording"]
    assert [a["status"] for a in (stopped, twice)] == ["stopped", "not_recording"]
    assert [(t["take"] == take, t["state"]) for t in after[:2]] == [(False, "recording"), (True, "done")]
    assert len(shown(running)) >= 1
    assert len(shown(last)) >= 5
    assert "graphs" in refused["detail"]
    assert "not found" in unknown["detail"]
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="recording-2')
    assert answer.headers["content-type"] == "video/mp4"


async def test_a_take_has_what_was_asked_of_its_stream_chunk_by_chunk(server: DoubleProcess) -> None:
    async with await Peer(server.client).connect({**PROMPTS, "recording": True}) as peer:
        began = await peer.wait_message("recording_changed")
        await recorded(server, began["take"], 8)
        peer.send({"prompts": "a bird"})
        await until(lambda: server.prompts() == ["a bird"], 30, "the prompt")
        await call(server, "POST", "/api/v1/session/parameters", 200, {"noise_scale": 0.5})
        body = {"label": "here"}
        await call(server, "POST", f"/api/v1/streams/{peer.session_id}/recordings/mark", 200, body)
        peer.send({"paused": True})
        await until(lambda: peer.messages, 30, "messages")
        before = len(peer.messages)
        await asyncio.sleep(0.5)  # repeated pictures are not recorded
        peer.send({"paused": False, "reset_cache": True})
        await recorded(server, began["take"], 20)
        peer.send({"recording": False})
        ended = await peer.wait_message("recording_changed", since=before)
        chunks = server.chunks()

    lines = (await call(server, "GET", f"/api/v1/takes/{began['take']}/data", 200))["lines"]
    head, *rest, end = lines
    prompts, noise = (
        next(line for line in rest if key in line.get("set", {})) for key in ("prompts", "noise_scale")
    )
    assert (began["state"], ended["state"], ended["take"]) == ("recording", "stopped", began["take"])
    assert (head["format"], head["stream"], head["pipeline_id"]) == (1, peer.session_id, "longlive")
    assert (head["width"], head["height"], head["chunk"]) == (160, 96, 0)
    assert head["version"] == importlib.metadata.version("wanstream")
    assert (head["engine_set"], head["trim_pauses"]) == ("plain_pictures", False)
    assert head["parameters"]["prompts"] == [{"text": "a boat", "weight": 1.0}]
    assert prompts["by"] == "datachannel"
    assert chunks[prompts["chunk"] - 1]["active_prompts"][0]["text"] == "a boat"
    assert chunks[prompts["chunk"]]["active_prompts"][0]["text"] == "a bird"
    assert (noise["set"], noise["by"]) == ({"noise_scale": 0.5}, "rest")
    names = [line["event"] for line in rest if "event" in line]
    assert [name for name in names if name != "pipeline"] == ["reset", "mark", "pause", "resume", "reset"]
    assert all(a["chunk"] <= b["chunk"] for a, b in itertools.pairwise(rest))
    assert (end["event"], end["state"]) == ("end", "done")


async def test_a_take_lives_on_when_its_viewer_leaves_and_ends_with_the_stop(
    server: DoubleProcess, tmp_path: Path
) -> None:
    async with await Peer(server.client).connect(PROMPTS) as peer:
        path = f"/api/v1/streams/{peer.session_id}/recordings"
        take = await call(server, "POST", path, 201, {"name": "first", "quality": "high"})
        await recorded(server, take["take"], 5)
        await peer.delete()
    there = await call(server, "GET", f"/api/v1/takes/{take['take']}", 200)
    await recorded(server, take["take"], there["frames"] + 10)
    in_use = [
        await call(server, "DELETE", f"/api/v1/takes/{take['take']}", 409),
        await call(server, "GET", f"/api/v1/takes/{take['take']}/video", 409),
        await call(server, "POST", path, 409, {}),
    ]

    done = await call(server, "POST", f"{path}/stop", 200)
    file = await saved(server, f"/api/v1/takes/{take['take']}/video", tmp_path)
    await call(server, "DELETE", f"/api/v1/takes/{take['take']}", 204)

    assert all("being recorded" in answer["detail"] for answer in in_use)
    assert (done["name"], done["quality"], done["state"], done["parts"]) == ("first", "high", "done", 1)
    assert (done["width"], done["height"]) == (160, 96)
    assert len(shown(file)) == done["frames"]
    await call(server, "GET", f"/api/v1/takes/{take['take']}", 404)


async def test_a_download_can_be_continued_and_is_not_repeated(server: DoubleProcess) -> None:
    async with await Peer(server.client).connect(PROMPTS) as peer:
        path = f"/api/v1/streams/{peer.session_id}/recordings"
        take = (await call(server, "POST", path, 201))["take"]
        await recorded(server, take, 5)
        done = await call(server, "POST", f"{path}/stop", 200)
    video = f"/api/v1/takes/{take}/video"

    whole = await server.client.call("GET", video)
    first = await server.client.call("GET", video, headers={"Range": "bytes=0-99"})
    rest = await server.client.call("GET", video, headers={"Range": "bytes=100-"})
    known = await server.client.call("GET", video, headers={"If-None-Match": whole.headers["etag"]})
    beyond = await server.client.call("GET", video, headers={"Range": f"bytes={done['size_bytes']}-"})
    editors = await server.client.call("GET", f"{video}?fast_start=1")
    part = await server.client.call("GET", f"{video}?part=2")

    assert (first.status, rest.status, known.status, beyond.status) == (206, 206, 304, 416)
    assert first.body + rest.body == whole.body
    assert len(whole.body) == done["size_bytes"]
    assert b"moof" in whole.body
    assert b"moof" not in editors.body
    assert part.status == 404
    assert f'filename="{take}.mp4"' in whole.headers["content-disposition"]
    copies = server.home / "recordings"
    await until(lambda: not list(copies.glob(".remux-*")), 30, "the copy is gone")


async def test_another_picture_size_begins_a_part(server: DoubleProcess, tmp_path: Path) -> None:
    async with await Peer(server.client).connect({**PROMPTS, "recording": True}) as peer:
        take = (await peer.wait_message("recording_changed"))["take"]
        await recorded(server, take, 5)
        await load(server.client, "longlive", {"height": 128, "width": 192})
        await until(lambda: peer.frames[-1].width == 192, 30, "the other size")
        there = await call(server, "GET", f"/api/v1/takes/{take}", 200)
        await recorded(server, take, there["frames"] + 5)
        done = await call(server, "POST", f"/api/v1/streams/{peer.session_id}/recordings/stop", 200)

    sizes = []
    for part in (1, 2):
        file = await saved(server, f"/api/v1/takes/{take}/video?part={part}", tmp_path)
        assert shown(file)[0][0] == 0
        sizes.append(file.stat().st_size)
    assert (done["parts"], done["width"], done["height"], done["state"]) == (2, 192, 128, "done")
    assert sum(sizes) == done["size_bytes"]


async def test_a_pause_leaves_no_gap_in_a_take_that_is_to_have_none(
    server: DoubleProcess, tmp_path: Path
) -> None:
    pause_s = 2.5
    async with await Peer(server.client).connect(PROMPTS) as peer:
        path = f"/api/v1/streams/{peer.session_id}/recordings"
        began = time.monotonic()
        take = (await call(server, "POST", path, 201, {"trim_pauses": True}))["take"]
        await recorded(server, take, 8)
        peer.send({"paused": True})

        async def is_paused() -> bool:
            return bool(
                (await call(server, "GET", f"/api/v1/streams/{peer.session_id}", 200))["state"] == "paused"
            )

        await until(is_paused, 30, "the pause")
        await asyncio.sleep(pause_s)
        before = (await call(server, "GET", f"/api/v1/takes/{take}", 200))["frames"]
        peer.send({"paused": False})
        await recorded(server, take, before + 8)
        await call(server, "POST", f"{path}/stop", 200)
        lasted_s = time.monotonic() - began

    lines = (await call(server, "GET", f"/api/v1/takes/{take}/data", 200))["lines"]
    pictures = shown(await saved(server, f"/api/v1/takes/{take}/video", tmp_path))
    at_s = {line["event"]: line["t"] for line in lines if line.get("event") in ("pause", "resume")}
    steps = [b - a for (a, _), (b, _) in itertools.pairwise(pictures)]
    assert at_s["resume"] == at_s["pause"]
    assert len(pictures) >= before + 8
    assert min(steps) > 0
    assert pictures[-1][0] < lasted_s - pause_s  # however long a picture takes on this machine


async def test_a_take_ends_at_its_own_limit_and_the_stream_goes_on(server: DoubleProcess) -> None:
    async with await Peer(server.client).connect(PROMPTS) as peer:
        path = f"/api/v1/streams/{peer.session_id}/recordings"
        take = await call(server, "POST", path, 201, {"max_s": 0.5})

        ended = await peer.wait_message("recording_changed", 30, since=1)
        await peer.wait_frames(3)
        found = await call(server, "GET", f"/api/v1/takes/{take['take']}", 200)
        again = await call(server, "POST", path, 201, {})
        metrics = await server.client.call("GET", "/metrics")
        await call(server, "POST", f"{path}/stop", 200)

    assert (ended["state"], ended["error"]) == ("error", found["error"])
    assert "longest that is allowed" in found["error"]
    assert (found["state"], again["state"]) == ("cut", "recording")
    assert "wanstream_recording_active 1.0" in metrics.text
    assert 'wanstream_recordings_total{state="cut"} 1.0' in metrics.text


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"quality": "best"}, "quality"),
        ({"trim_pauses": "x"}, "trim_pauses"),
        ({"max_s": -1}, "max_s"),
        ({"name": 3}, "name"),
        ([], "body"),
    ],
)
async def test_a_recording_that_makes_no_sense_is_refused(
    body: Any, where: str, server: DoubleProcess
) -> None:
    problems = (await call(server, "POST", "/api/v1/streams/nobody/recordings", 422, body))["detail"]

    assert where in problems[0]["loc"]


async def test_a_killed_server_keeps_what_it_recorded(tmp_path: Path) -> None:
    process = DoubleProcess(tmp_path)
    await load(process.client, "longlive", SIZE)
    async with await Peer(process.client).connect({**PROMPTS, "recording": True}) as peer:
        take = (await peer.wait_message("recording_changed"))["take"]
        duration_s = 0.0
        while duration_s < 2.5:
            duration_s = (await call(process, "GET", f"/api/v1/takes/{take}", 200))["duration_s"]
        process.kill()

    again = DoubleProcess(tmp_path)
    try:
        await until(lambda: (tmp_path / "recordings" / f"{take}.mp4").exists(), 30, "the file's name")
        found = await call(again, "GET", f"/api/v1/takes/{take}", 200)
    finally:
        again.stop()

    pictures = shown(tmp_path / "recordings" / f"{take}.mp4")
    assert (found["state"], found["error"]) == ("cut", "the server ended while it recorded")
    assert found["frames"] == len(pictures)
    assert pictures[-1][0] >= duration_s - 1.5


async def test_a_server_that_stops_completes_its_takes(tmp_path: Path) -> None:
    process = DoubleProcess(tmp_path)
    await load(process.client, "longlive", SIZE)
    async with await Peer(process.client).connect({**PROMPTS, "recording": True}) as peer:
        take = (await peer.wait_message("recording_changed"))["take"]
        await recorded(process, take, 10)
        process.stop()

    log = process.log
    assert log.index(f"The take {take} is complete") < log.index("Closing the session")
    assert [path.name for path in (tmp_path / "recordings").glob("*.mp4*")] == [f"{take}.mp4"]
    assert len(shown(tmp_path / "recordings" / f"{take}.mp4")) >= 10
    assert '"state":"done"' in (tmp_path / "recordings" / f"{take}.jsonl").read_text()


async def test_a_replay_sets_parameters_in_their_chunks_and_leaves_what_others_set(
    server: DoubleProcess,
) -> None:
    events = [
        {"chunk": 3, "set": {"prompts": "a bird"}},
        {"chunk": 6, "set": {"prompts": "a house", "noise_scale": 0.2}},
        {"chunk": 12, "event": "end"},
    ]
    async with await Peer(server.client).connect(PROMPTS) as peer:
        path = f"/api/v1/streams/{peer.session_id}/replay"
        started = await call(server, "POST", path, 202, {"events": events, "reset": False})
        first = len(server.chunks())
        twice = await call(server, "POST", path, 409, {"events": events})
        peer.send({"noise_scale": 0.9})  # it is the driver's from now on
        await until(lambda: server.prompts() == ["a house"], 30, "the last prompt")
        await until(lambda: [m for m in peer.messages if m.get("state") == "stopped"], 30, "the end")
        again = await call(server, "POST", path, 202, {"events": events, "clock": "time"})
        await call(server, "DELETE", path, 204)
        chunks = server.chunks()

    texts = [chunk["active_prompts"][0]["text"] for chunk in chunks]
    assert (started["lines"], started["errors"], again["status"]) == (2, [], "replaying")
    assert "DELETE it first" in twice["detail"]
    assert texts.index("a house") - texts.index("a bird") == 3
    assert first <= texts.index("a bird") <= first + 4
    assert chunks[-1]["parameters"]["noise_scale"] == 0.9


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"events": [], "take": "x"},
        {"events": [{"chunk": "2", "set": {}}]},
        {"events": [{"chunk": 2, "set": []}]},
        {"events": ["set"]},
        {"events": [], "speed": 0},
        {"events": [], "clock": "beat"},
        {"events": [{}] * 20_001},
    ],
)
async def test_a_replay_that_makes_no_sense_is_refused(body: Any, server: DoubleProcess) -> None:
    async with await Peer(server.client).connect(PROMPTS) as peer:
        await call(server, "POST", f"/api/v1/streams/{peer.session_id}/replay", 422, body)
