"""The life of sessions: limits, ends of all kinds, peers of all kinds."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.server.camera import NumberedCamera
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, pipeline_status, sessions, wait_status
from tests.server.peer import Peer, numbers_of, until

CONNECT_TIMEOUT_S = 2.0
PROMPTS = {"prompts": [{"text": "a", "weight": 1.0}]}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    """A server for two sessions that drops peers which do not connect in time."""
    env = {"WANSTREAM_MAX_SESSIONS": "2"}
    process = DoubleProcess(tmp_path_factory.mktemp("two"), env, connect_timeout_s=CONNECT_TIMEOUT_S)
    yield process
    process.stop()


@pytest.fixture
async def server(process: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """That server, healthy, with LongLive loaded and without sessions."""
    process.reset_faults()
    await load(process.client, "longlive", {"height": 96, "width": 128})
    yield process
    for session_id in await sessions(process.client):
        await process.client.call("DELETE", f"/api/v1/webrtc/offer/{session_id}")


async def no_session(server: DoubleProcess) -> bool:
    return not await sessions(server.client)


async def session_ids(server: DoubleProcess) -> set[str]:
    return set(await sessions(server.client))


async def test_third_session_is_refused_until_one_leaves(server: DoubleProcess) -> None:
    async with Peer(server.client) as one, Peer(server.client) as two, Peer(server.client) as three:
        await one.connect(PROMPTS)
        await two.connect(PROMPTS)

        refused = await three.offer(PROMPTS)
        await one.delete()
        accepted = await three.offer(PROMPTS)

        assert refused.status == 503
        assert refused.json()["detail"] == "Maximum number of concurrent sessions (2) reached"
        assert refused.headers["retry-after"].isdigit()
        assert accepted.status == 200
        assert await session_ids(server) == {two.session_id, three.session_id}


async def test_sessions_that_are_not_connected_make_room(server: DoubleProcess) -> None:
    async with Peer(server.client) as connected, Peer(server.client) as waiting, Peer(server.client) as third:
        await connected.connect(PROMPTS)
        waiting_id = (await offer_only(waiting))["sessionId"]

        accepted = await third.offer(PROMPTS)
        patched = await server.client.call(
            "PATCH", f"/api/v1/webrtc/offer/{waiting_id}", json_body={"candidates": []}
        )

        assert accepted.status == 200
        assert patched.status == 404
        assert await session_ids(server) == {connected.session_id, third.session_id}


async def test_only_the_oldest_session_that_is_not_connected_makes_room(server: DoubleProcess) -> None:
    async with Peer(server.client) as old, Peer(server.client) as young, Peer(server.client) as third:
        await offer_only(old)
        answer = await offer_only(young)

        accepted = (await third.offer(PROMPTS)).status
        await young.accept(answer)
        await young.connected()

        assert accepted == 200
        assert await session_ids(server) == {young.session_id, third.session_id}


async def offer_only(peer: Peer) -> dict[str, str]:
    """Offer and never accept the answer."""
    body = {"sdp": await peer.offer_sdp(), "type": "offer"}
    answer = await peer.client.call("POST", "/api/v1/webrtc/offer", json_body=body)
    assert answer.status == 200, answer.text
    return dict(answer.json())


async def test_peer_that_never_connects_is_dropped(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        session_id = (await offer_only(peer))["sessionId"]
        before = await session_ids(server)

        await until(lambda: no_session(server), CONNECT_TIMEOUT_S + 3, "session dropped")

        patched = await server.client.call(
            "PATCH", f"/api/v1/webrtc/offer/{session_id}", json_body={"candidates": []}
        )
        assert before == {session_id}
        assert patched.json() == {"detail": f"Session {session_id} not found"}
        assert not server.sessions() or server.sessions()[-1]["closed"]


async def test_peer_that_never_connects_costs_no_chunk(server: DoubleProcess) -> None:
    before = len(server.sessions())

    async with Peer(server.client) as peer:
        await offer_only(peer)
        await until(lambda: no_session(server), CONNECT_TIMEOUT_S + 3, "session dropped")

    assert len(server.sessions()) == before


async def test_offers_at_the_same_time_are_all_answered(server: DoubleProcess) -> None:
    peers = [Peer(server.client) for _ in range(6)]
    for peer in peers:
        await peer.offer_sdp()

    answers = await asyncio.gather(*(peer.offer(PROMPTS) for peer in peers))

    assert {answer.status for answer in answers} <= {200, 503}
    assert all(answer.headers["retry-after"].isdigit() for answer in answers if answer.status == 503)
    assert 1 <= len(await sessions(server.client)) <= 2
    for peer in peers:
        await peer.close()


async def test_client_that_hangs_up_during_its_offer_leaves_no_session(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        body = json.dumps({"sdp": await peer.offer_sdp(), "type": "offer"})
    head = f"POST /api/v1/webrtc/offer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}Content-Type: application/json\r\n\r\n{body}".encode()

    for _ in range(10):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request)

    await until(lambda: no_session(server), CONNECT_TIMEOUT_S + 3, "no session left")


async def test_deleting_twice_is_fine_and_frees_everything(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)

        answers = [await peer.delete(), await peer.delete()]
        await until(lambda: peer.pc.connectionState == "closed", 30, "the peer notices")

        chunks = len(server.chunks())
        await asyncio.sleep(0.6)
        assert [answer.status for answer in answers] == [204, 204]
        assert [answer.body for answer in answers] == [b"", b""]
        assert await no_session(server)
        assert server.sessions()[-1]["closed"]
        assert len(server.chunks()) == chunks


async def test_peer_that_leaves_politely_is_forgotten_at_once(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)

    await until(lambda: no_session(server), 30, "session gone")
    assert server.sessions()[-1]["closed"]


async def test_receive_only_peer_gets_video(server: DoubleProcess) -> None:
    async with Peer(server.client, direction="recvonly") as peer:
        await peer.connect(PROMPTS)

        frames = await peer.wait_frames(10)

        assert {(frame.width, frame.height) for frame in frames} == {(128, 96)}


async def test_peer_without_data_channel_gets_video(server: DoubleProcess) -> None:
    async with Peer(server.client, data_channel=False) as peer:
        await peer.connect(PROMPTS)

        frames = await peer.wait_frames(10)

        assert [frame.pts for frame in frames] == sorted({frame.pts for frame in frames})


async def test_peer_connects_with_trickled_candidates_only(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.offer(PROMPTS, candidates=False)

        answers = [await peer.trickle(), await peer.trickle([{"candidate": "", "sdpMid": "0"}])]
        await peer.connected()

        assert [answer.status for answer in answers] == [204, 204]
        assert await peer.wait_frames(5)


async def test_stream_goes_on_when_the_data_channel_closes(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        assert peer.channel is not None
        peer.channel.close()
        await until(lambda: peer.channel is not None and peer.channel.readyState == "closed", 30, "closed")

        chunks = len(server.chunks())
        await peer.wait_frames(10)

        assert len(server.chunks()) > chunks
        assert server.chunks()[-1]["active_prompts"] == PROMPTS["prompts"]


async def test_newest_data_channel_gets_the_notifications(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        old: list[object] = []
        assert peer.channel is not None
        peer.channel.on("message", old.append)
        newest = peer.open_channel("control")
        await until(lambda: newest.readyState == "open", 30, "second channel open")
        peer.send({"prompts": [{"text": "b"}]})
        await until(lambda: server.prompts() == ["b"], 30, "new prompt in use")

        peer.send({"noise_scale": 9})
        message = await peer.wait_message("parameter_error")

        assert message["errors"][0]["loc"] == ["noise_scale"]
        assert old == []


async def test_sessions_do_not_see_each_other(server: DoubleProcess) -> None:
    async with Peer(server.client) as one, Peer(server.client) as two:
        await one.connect({"prompts": [{"text": "one"}]})
        await one.wait_frames(1)
        await two.connect({"prompts": [{"text": "two"}]})
        await two.wait_frames(1)

        two.send({"prompts": [{"text": "three"}], "noise_scale": 0.1})
        await until(lambda: server.chunks(-1)[-1]["active_prompts"][0]["text"] == "three", 30, "new prompt")

        assert {c["active_prompts"][0]["text"] for c in server.chunks(-2)} == {"one"}
        assert {c["parameters"]["noise_scale"] for c in server.chunks(-2)} == {0.7}


async def test_pause_while_the_next_chunk_is_awaited_repeats_the_last_picture(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(10)
        server.set_faults(chunk_delay_s=10)
        await until(lambda: time.monotonic() - peer.frames[-1].at > 0.8, 30, "nothing left to show")
        shown = numbers_of(peer.frames)[-1]

        peer.send({"paused": True})
        repeated = await peer.wait_frames(5, 30)

        numbers = {frame.number for frame in repeated}
        assert len(numbers) == 1
        assert numbers <= {
            shown,
            shown + 1,
        }  # a receiver holds the newest frame back until the next one comes
        assert peer.messages == []


async def test_change_to_text_ends_the_wait_for_video_that_does_not_come(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)
        peer.send({"input_mode": "video"})
        await asyncio.sleep(1.0)  # the chunk in the making ends, the next one waits for pictures
        chunks = len(server.chunks())
        await asyncio.sleep(0.5)
        assert len(server.chunks()) == chunks

        peer.send({"input_mode": "text"})

        await until(lambda: len(server.chunks()) > chunks, 30, "further chunks")


async def test_a_camera_that_falls_silent_is_told_of_once_per_silence(server: DoubleProcess) -> None:
    camera = NumberedCamera()
    async with Peer(server.client, source=camera) as peer:
        await peer.connect({"input_mode": "video", **PROMPTS})
        await peer.wait_frames(5)

        for silence in range(2):
            since = len(peer.messages)
            camera.on.clear()
            message = await peer.wait_message("parameter_error", 30, since=since)
            camera.on.set()
            await peer.wait_message("input_resumed", 30, since=since)
            assert message["errors"][0]["type"] == "no_input"
            assert "has stopped" in message["errors"][0]["msg"], silence

        assert await peer.wait_frames(5)
        assert len(peer.messages) == 4


async def test_a_chunk_without_a_picture_begins_again_once_when_its_prompt_changes(
    server: DoubleProcess,
) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)
        server.set_faults(chunk_delay_s=600)
        changes = [[{"text": text, "weight": 1.0}] for text in ("b", "c", "d")]

        peer.send({"prompts": changes[0]})
        await until(lambda: server.sessions()[-1]["given_up"] == 1, 30, "the first change")
        known = len(server.chunks())
        for prompts in changes[1:]:
            peer.send({"prompts": prompts})
            await asyncio.sleep(0.3)  # time to give up the chunk once more
        server.set_faults(chunk_delay_s=0.2)
        await until(lambda: len(server.chunks()) > known + 1, 30, "the chunk after it")

        assert [chunk["active_prompts"] for chunk in server.chunks()[known : known + 2]] == [
            changes[0],
            changes[2],
        ]


async def test_one_failed_chunk_is_reported_and_the_stream_goes_on(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)

        server.set_faults(chunk_errors=1, chunk_error="the picture fell off the wall")
        message = await peer.wait_message("parameter_error")

        assert message["errors"][0]["msg"] == "the picture fell off the wall"
        assert await peer.wait_frames(10)


async def test_values_of_a_failed_chunk_are_taken_back(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)
        peer.send({"paused": True})
        await asyncio.sleep(0.5)

        server.set_faults(chunk_errors=1, chunk_error="no such words")
        peer.send({"prompts": [{"text": "bad"}]})
        peer.send({"paused": False})
        message = await peer.wait_message("parameter_error")
        await peer.wait_frames(10)

        assert message["errors"][0]["loc"] == ["prompts"]
        assert server.chunks()[-1]["active_prompts"] == PROMPTS["prompts"]


async def test_five_failed_chunks_in_a_row_end_the_stream(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)

        server.set_faults(chunk_errors=1000, chunk_error="nothing works")
        message = await peer.wait_message("stream_stopped", 30)
        await until(lambda: no_session(server), 30, "session closed")

        assert message["error_message"] == "nothing works"
        assert (await pipeline_status(server.client))["status"] == "loaded"


async def test_unload_ends_the_streams_without_an_error(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)

        await server.client.call("POST", "/api/v1/pipeline/unload")
        message = await peer.wait_message("stream_stopped")
        await until(lambda: no_session(server), 30, "session closed")

        assert message == {"type": "stream_stopped"}


async def test_viewers_are_told_what_takes_the_place_of_their_pipeline(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)

        await load(server.client, "memflow", {"height": 64, "width": 192})
        await until(lambda: len(peer.messages) == 2, 30, "both messages")
        await load(server.client, "passthrough")
        await until(lambda: len(peer.messages) == 4, 30, "two more messages")
        await server.client.call("POST", "/api/v1/pipeline/unload")
        await peer.wait_message("stream_stopped")

        loading, loaded, _, passthrough, unloaded, _ = peer.messages
        assert {message["type"] for message in peer.messages[:5]} == {"pipeline_changed"}
        memflow = {"pipeline_id": "memflow", "modes": ["text", "video"], "height": 64, "width": 192}
        assert memflow.items() <= loading.items()
        assert memflow.items() <= loaded.items()
        assert (loading["status"], loaded["status"], loaded["input_mode"]) == ("loading", "loaded", "text")
        assert (passthrough["modes"], passthrough["input_mode"], passthrough["width"]) == (
            ["video"],
            "video",
            None,
        )
        assert (unloaded["status"], unloaded["pipeline_id"]) == ("not_loaded", None)


async def test_death_of_the_serving_side_ends_the_streams_and_a_new_load_heals(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        await peer.wait_frames(5)

        server.lose("The model process died.")
        message = await peer.wait_message("stream_stopped")
        status = await wait_status(server.client, "error")

        assert "The model process died." in message["error_message"]
        assert "The model process died." in status["error"]

    await load(server.client, "longlive")
    async with Peer(server.client) as again:
        await again.connect(PROMPTS)
        assert await again.wait_frames(5)


async def test_frame_size_follows_a_reload(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect(PROMPTS)
        before = await peer.wait_frames(5)

        await load(server.client, "memflow", {"height": 64, "width": 192})
        await until(lambda: (peer.frames[-1].width, peer.frames[-1].height) == (192, 64), 30, "new size")

        assert (before[0].width, before[0].height) == (128, 96)
        assert [frame.pts for frame in peer.frames] == sorted({frame.pts for frame in peer.frames})
        assert server.chunks()[0]["init_cache"]
        assert server.chunks()[0]["active_prompts"] == PROMPTS["prompts"]
