"""Controls that move all the time, with a real Triton; benchmarks/controls.py is the long form."""

import asyncio
import time

import pytest

from streaming.specs import LONGLIVE
from tests.server.gateway_calls import load, sessions
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess

TRITON = "tritonserver"
SLOW = {"denoising_step_list": list(range(1000, 0, -100))}  # a chunk waits for those of the others
STEPS = 20
MOVES = 160
PAUSE_S = 1 / 32  # four times as often as a person; the chunks of these engines are as much shorter


def weights(step: int) -> dict[str, object]:
    """Two prompts whose weights go to and fro."""
    weight = abs(step % (2 * STEPS) - STEPS) / STEPS
    return {"prompts": [{"text": "a fox", "weight": weight}, {"text": "a boat", "weight": 1 - weight}]}


async def move(peer: Peer, moves: int) -> None:
    for step in range(moves):
        peer.send(weights(step))
        await asyncio.sleep(PAUSE_S)


@pytest.mark.timeout(300)
async def test_no_stream_is_lost_under_controls_that_move_all_the_time(demo_server: ServerProcess) -> None:
    """Three viewers take turns, one of whom leaves in the middle; then the pipeline is loaded anew."""
    await load(demo_server.client, LONGLIVE.id, within_s=120)
    triton, written = demo_server.child(TRITON).pid, len(demo_server.log)
    async with Peer(demo_server.client) as one, Peer(demo_server.client) as two:
        for peer in (one, two):
            await peer.connect({"input_mode": "text", **SLOW, **weights(0)})
            await peer.wait_frames(1, within_s=60)
        async with Peer(demo_server.client) as leaving:
            await leaving.connect({"input_mode": "text", **SLOW, **weights(0)})
            await leaving.wait_frames(1, within_s=60)
            await asyncio.gather(move(one, MOVES), move(two, MOVES), move(leaving, MOVES // 2))
        shown = [len(peer.frames) for peer in (one, two)]
        moving = asyncio.gather(move(one, MOVES), move(two, MOVES))
        await until(
            lambda: all(len(p.frames) > n for p, n in zip((one, two), shown, strict=True)), 60, "pictures"
        )
        numbers = await sessions(demo_server.client)

        began = time.monotonic()
        await load(demo_server.client, LONGLIVE.id, {"seed": 7}, within_s=120)
        took_s = time.monotonic() - began
        await moving

        log = demo_server.log[written:]
        assert "begins again" in log
        assert "begins afresh" not in log
        assert [n["failed_chunks"] for n in numbers.values()] == [0] * len(numbers)
        assert [*one.messages, *two.messages] == []
        assert demo_server.child(TRITON).pid == triton, f"Triton was restarted; the load took {took_s:.0f} s"
