"""The table of streams: how long they live, who may have their room, and by what names they are found."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aioice import ice, stun
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from gateway.config import Limits, Secrets
from gateway.errors import ApiError, ValidationFailed
from gateway.pipelines.load_params import LoadRequest
from gateway.pipelines.state import Pipelines, State
from gateway.recording.recordings import Recordings
from gateway.recording.take_writer import DISK_FULL
from gateway.recording.take_writer import Limits as TakeLimits
from gateway.recording.takes import Takes
from gateway.stream.encoding.encoders import Encoding
from gateway.stream.encoding.observer import Unobserved
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams
from gateway.webrtc.aiortc_patches.guards import install_guards
from gateway.webrtc.aiortc_patches.sender import install_sender
from gateway.webrtc.ice.servers import IceServers
from gateway.webrtc.sessions import Join, Sessions
from gateway.whip.playing import Players
from streaming.specs import SPECS
from tests.server.double import SERVED, DoubleServing
from tests.server.peer import until
from tests.unit.test_peer_close import Nobody
from tests.unit.test_stream import RecordedControl, RecordedSource


class RecordedSink:
    """A sink that notes what was still there when it was closed."""

    def __init__(self, stream: Stream, kind: str = "webrtc") -> None:
        self.kind = kind
        self.source_stopped: list[bool] = []
        self._stream = stream

    @property
    def info(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "id": "sink", "since": 0.0}

    async def close(self) -> None:
        source = self._stream.source
        assert isinstance(source, RecordedSource)
        self.source_stopped.append(source.stopped)


@pytest.fixture
async def pipelines() -> AsyncIterator[Pipelines]:
    """Passthrough is loaded, served by the double."""
    pipelines = Pipelines(DoubleServing(), load_timeout_s=60)
    params = {"height": 64, "width": 64}
    pipelines.request_load(LoadRequest(SPECS["passthrough"], params, [], chosen=frozenset()))
    await pipelines.wait_for(State.LOADED)
    yield pipelines
    await pipelines.close()


@pytest.fixture
async def streams(pipelines: Pipelines, tmp_path: Path) -> AsyncIterator[Streams]:
    """Room for two streams."""
    streams = Streams(pipelines, Nobody(), tmp_path, Limits(streams=2))
    yield streams
    await streams.close()


async def refused(streams: Streams, name: str | None = None, **options: Any) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        await streams.create(name, **options)
    return refusal.value


async def test_a_stream_ends_with_its_last_holder(streams: Streams) -> None:
    stream = await streams.create()
    stream.hold("driver")
    stream.hold("recorder")

    stream.release("driver")
    held = (stream.closed, len(streams))
    stream.release("recorder")
    await stream.close()

    assert held == (False, 1)
    assert len(streams) == 0


async def test_those_who_still_watch_are_told_of_the_end_and_have_time_to_read_it(streams: Streams) -> None:
    stream = await streams.create()
    viewer = RecordedControl()
    stream.add_control(viewer)
    stream.hold("driver")

    stream.release("driver")
    told = (list(viewer.messages), stream.closed)
    await until(lambda: len(streams) == 0, 30, "the end of the stream")

    assert told == ([{"type": "stream_stopped"}], False)


async def test_a_stream_that_lingers_waits_for_its_publisher_to_come_again(streams: Streams) -> None:
    stream = await streams.create("obs", linger_s=0.1)
    stream.hold("publisher")
    stream.release("publisher")
    stream.hold("publisher again")
    await asyncio.sleep(0.2)
    waited = stream.closed

    stream.release("publisher again")
    await until(lambda: len(streams) == 0, 30, "the end of the stream")

    assert not waited
    assert stream.closed


async def test_a_kept_stream_stays_until_it_is_closed_and_sinks_are_closed_before_the_source(
    streams: Streams,
) -> None:
    stream = await streams.create("main", kept=True)
    recorder = RecordedSink(stream, "recorder")
    ends: list[int] = []
    stream.take_source(RecordedSource())
    stream.add_sink(recorder)
    stream.on_closed(lambda: ends.append(len(streams)))
    stream.hold("driver")
    stream.release("driver")
    alive = not stream.closed

    await asyncio.gather(stream.close("first"), stream.close("second"))

    assert alive
    assert recorder.source_stopped == [False]
    assert ends == [0]


async def test_full_tables_turn_out_who_is_not_connected_and_nobody_else(streams: Streams) -> None:
    connected, waiting = await streams.create(), await streams.create()
    connected.hold("peer", lambda: True)
    waiting.hold("peer", lambda: False)

    third = await streams.create()
    third.hold("peer")
    refusal = await refused(streams)

    assert waiting.closed
    assert not connected.closed
    assert (refusal.status, refusal.headers) == (503, {"Retry-After": "5"})
    assert refusal.detail == "Maximum number of concurrent sessions (2) reached"


async def test_streams_are_found_by_name_by_session_and_by_alias(streams: Streams) -> None:
    with pytest.raises(ApiError, match="Stream main not found"):
        streams.find("main")
    watched, headless = await streams.create("show"), await streams.create(kept=True)
    watched.add_control(RecordedControl("a-session"))
    watched.add_sink(RecordedSink(watched))
    watched.take_source(RecordedSource())

    found = [streams.find(name) for name in ("show", "a-session", headless.id, "headless", "main")]
    with pytest.raises(ApiError, match="Stream nothing not found") as missing:
        streams.find("nothing")

    assert found == [watched, watched, headless, headless, headless]
    assert streams.newest() is headless
    assert missing.value.status == 404


@pytest.mark.parametrize("name", ["all", "headless", "Show", "", "-a", "a" * 65, "../a", "a\n"])
async def test_a_name_that_cannot_be_one_is_refused(streams: Streams, name: str) -> None:
    refusal = await refused(streams, name)

    assert refusal.status == 422
    assert "a-z" in refusal.detail


async def test_another_viewer_is_refused_when_its_video_would_not_fit_in_the_network(
    pipelines: Pipelines, tmp_path: Path
) -> None:
    streams = Streams(pipelines, Nobody(), tmp_path, Limits(egress=15_000_000))  # twice the usual 7 Mbit/s
    stream = await streams.create()
    stream.add_sink(RecordedSink(stream))

    streams.require_place(stream)
    stream.add_sink(RecordedSink(stream, "whep"))
    with pytest.raises(ApiError, match="WANSTREAM_MAX_EGRESS") as refusal:
        streams.require_place(stream)
    stream.take_source(RecordedSource())
    await streams.close()

    assert (refusal.value.status, refusal.value.headers) == (503, {"Retry-After": "5"})


async def test_a_name_in_use_and_wrong_parameters_are_refused_and_make_nothing(streams: Streams) -> None:
    await streams.create("show", kept=True)

    refusal = await refused(streams, "show")
    with pytest.raises(ValidationFailed):
        await streams.create(parameters={"noise_scale": 9})

    assert refusal.status == 409
    assert [stream.id for stream in streams] == ["show"]


async def test_no_stream_is_made_without_a_pipeline_or_while_the_server_stops(
    streams: Streams, pipelines: Pipelines
) -> None:
    streams.draining = True
    stopping = await refused(streams)
    streams.draining = False
    await pipelines.unload()
    unloaded = await refused(streams)

    assert (stopping.status, unloaded.status) == (503, 400)


async def test_a_full_disk_ends_the_take_and_not_its_stream(
    streams: Streams, pipelines: Pipelines, tmp_path: Path
) -> None:
    params = {"height": 64, "width": 128}
    pipelines.request_load(LoadRequest(SPECS["longlive"], params, [], chosen=frozenset()))
    await pipelines.wait_for(State.LOADED)
    recordings = Recordings(Takes(tmp_path, start_bytes=0), TakeLimits(free_bytes=1 << 60), "1.2.3")
    stream, control = await streams.create("show", kept=True), RecordedControl()
    stream.add_control(control)
    sink = stream.output.join()

    take = (await recordings.start(stream))["take"]
    await until(lambda: len(of_kind(control, "recording_changed")) == 2, 30, "the end of the take")
    shown = stream.output.frames_out
    while stream.output.frames_out == shown:
        await asyncio.wait_for(sink.next_picture(), 30)
    found = await recordings.find(take)
    alive = not stream.stopped

    ended = of_kind(control, "recording_changed")[1]
    assert (ended["state"], ended["take"], ended["error"]) == ("error", take, DISK_FULL)
    assert (found.describe()["state"], found.describe()["error"]) == ("cut", DISK_FULL)
    assert (found.head["version"], found.head["engine_set"]) == ("1.2.3", SERVED.engine_set)
    assert alive


async def test_recorders_end_before_viewers(streams: Streams) -> None:
    stream = await streams.create(kept=True)
    order: list[str] = []

    class Closing(RecordedSink):
        async def close(self) -> None:
            await asyncio.sleep(0.02 if self.kind == "recorder" else 0)
            order.append(self.kind)

    for kind in ("whep", "recorder", "webrtc"):
        stream.add_sink(Closing(stream, kind))
    await stream.close()

    assert order == ["recorder", "whep", "webrtc"]


def of_kind(control: RecordedControl, kind: str) -> list[Mapping[str, Any]]:
    return [message for message in control.messages if message["type"] == kind]


@pytest.mark.parametrize(
    ("kind", "reason", "counted"),
    [
        ("whep", "left", ["left"]),
        ("mjpeg", "consent", ["consent"]),
        ("webrtc", None, []),  # its encoder has failed, which was counted
        ("recorder", "left", []),
    ],
)
async def test_viewers_who_go_are_counted_once_by_the_reason(
    kind: str, reason: str | None, counted: list[str], pipelines: Pipelines, tmp_path: Path
) -> None:
    counts = Counted()
    streams = Streams(pipelines, Nobody(), tmp_path, Limits(streams=2), Encoding(observer=counts))
    stream = await streams.create(kept=True)
    sink, last = RecordedSink(stream, kind), RecordedSink(stream, kind)
    stream.take_source(RecordedSource())
    for each in (sink, last):
        stream.add_sink(each)

    stream.remove_sink(sink, reason)
    stream.remove_sink(sink, reason)
    while_it_lived = list(counts.reasons)
    stream.stop("it is over")
    stream.remove_sink(last, reason)
    await streams.close()

    assert while_it_lived == counted
    assert counts.reasons[len(counted) :] == ["evicted"] * len(counted)


class Counted(Unobserved):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def viewer_closed(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.mark.parametrize("protocol", ["webrtc", "whep"])
async def test_a_viewer_that_does_not_answer_any_more_is_counted_as_lost_consent(
    protocol: str, pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_guards()
    install_sender()
    monkeypatch.setattr(ice, "CONSENT_INTERVAL", 0.01)
    monkeypatch.setattr(stun, "RETRY_RTO", 0.05)
    counts = Counted()
    streams = Streams(pipelines, Nobody(), tmp_path, Limits(), Encoding(observer=counts))
    stream, servers = await streams.create(kept=True), IceServers(Secrets(), explicit=[])
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver("video", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    sdp = peer.localDescription.sdp

    if protocol == "webrtc":
        answer = (await Sessions(streams, servers, 60).join(sdp, "offer", Join(stream), None)).sdp
    else:
        players = Players(streams, pipelines, servers, 60)
        _, answer = await players.play(stream.id, sdp, wait=True, first_address=None)
    await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await until(lambda: peer.connectionState == "connected", 30, "connected")
    for transceiver in peer.getTransceivers():
        for here in transceiver.receiver.transport.transport._connection._protocols:
            here.transport.close()  # it is gone without a word
    await until(lambda: counts.reasons, 60, "the end of the viewer")
    await streams.close()
    await peer.close()

    assert counts.reasons == ["consent"]
