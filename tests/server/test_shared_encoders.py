"""Several viewers of one stream, real peers all: one encoder, and key frames for all."""

import itertools
import time
from contextlib import AsyncExitStack

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until
from tests.server.test_operations import scrape
from tests.server.test_viewers import PROMPTS, join

VIEWERS = 7
ENCODERS = "wanstream_encoders{codec=VP8}{tier=full}"
ENCODED = "wanstream_encode_seconds_count{codec=VP8}"


async def ask_for_key_frames(peer: Peer, count: int) -> None:
    """Say `count` times that a picture was lost."""
    receiver = next(each for each in peer.pc.getReceivers() if each.track.kind == "video")
    for _ in range(count):
        for source in receiver.getSynchronizationSources():
            await receiver._send_rtcp_pli(source.source)


async def test_eight_viewers_are_served_by_one_encoder_and_lost_pictures_cost_few_key_frames(
    double_server: DoubleProcess,
) -> None:
    double_server.reset_faults()
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    before = scrape(double_server)
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(Peer(double_server.client))
        await owner.connect(PROMPTS)
        viewers = [
            await stack.enter_async_context(Peer(double_server.client, direction="recvonly"))
            for _ in range(VIEWERS)
        ]
        for viewer in viewers:
            await join(viewer, owner.session_id)
        seen = [len(await viewer.wait_frames(5)) for viewer in viewers]
        begun = scrape(double_server)

        began = time.monotonic()
        await ask_for_key_frames(viewers[0], 40)
        asked = "wanstream_pli_total"
        await until(lambda: scrape(double_server)[asked] >= begun.get(asked, 0) + 40, 30, "40 requests")
        for viewer in viewers:
            await viewer.wait_frames(10)
        after = scrape(double_server)
        half_seconds = int(2 * (time.monotonic() - began))
        path = f"/api/v1/streams/{owner.session_id}"
        sinks = (await double_server.client.call("GET", path)).json()["sinks"]

    gone = await _without_encoders(double_server)
    assert min(seen) >= 5
    assert begun[ENCODERS] == after[ENCODERS] == 1
    longest = max(len(peer.frames) for peer in (owner, *viewers))
    assert after[ENCODED] - before.get(ENCODED, 0) < 2 * longest  # eight encoders would be near eight times
    key_frames = "wanstream_keyframes_total{reason=pli}"
    assert 1 <= after[key_frames] - begun.get(key_frames, 0) <= half_seconds + 1  # one in half a second
    assert after["wanstream_egress_bytes_total"] > begun["wanstream_egress_bytes_total"]
    assert all(a.pts < b.pts for peer in viewers for a, b in itertools.pairwise(peer.frames))
    assert gone[ENCODERS] == 0
    assert len(sinks) == 1 + VIEWERS
    assert {each["codec"] for each in sinks} == {"VP8"}
    # On a machine that is too busy some may have become too slow.
    assert {(each["tier"], each["width"], each["height"]) for each in sinks} <= {
        ("full", 128, 96),
        ("low", 128, 96),
        ("low", 64, 48),
    }
    assert min(each["frames"] for each in sinks) >= 15


async def _without_encoders(server: DoubleProcess) -> dict[str, float]:
    """The metrics once everybody has left."""
    await until(lambda: scrape(server)[ENCODERS] == 0, 30, "the encoder ends")
    return scrape(server)


async def test_an_owner_and_a_viewer_keep_their_stream_through_a_pause_and_another_size(
    double_server: DoubleProcess,
) -> None:
    double_server.reset_faults()
    client = double_server.client
    await load(client, "longlive", {"height": 96, "width": 128})
    async with Peer(client) as owner, Peer(client, direction="recvonly") as viewer:
        await owner.connect(PROMPTS)
        await join(viewer, owner.session_id)
        peers = owner, viewer
        for peer in peers:
            await peer.wait_frames(5)

        owner.send({"paused": True})
        for peer in peers:
            await peer.wait_frames(5)
        owner.send({"paused": False})
        await load(client, "longlive", {"height": 64, "width": 192})
        for peer in peers:
            await until(lambda peer=peer: peer.frames[-1].width == 192, 30, "the other size")
            await peer.wait_frames(5)

    for peer in peers:
        assert all(a.pts < b.pts for a, b in itertools.pairwise(peer.frames))
        sizes = [size for size, _ in itertools.groupby((f.width, f.height) for f in peer.frames)]
        assert sizes == [(128, 96), (192, 64)]
