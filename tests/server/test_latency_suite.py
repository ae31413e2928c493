"""The latency suite against the product's own server."""

import asyncio

from benchmarks.common import Server, load_pipeline
from benchmarks.latency import table, triton_url
from benchmarks.latency_runs import Workload, measure_served
from streaming.specs import SPECS, VIDEO
from tests.server.processes import ServerProcess

SIZE = (128, 192)


async def test_the_suite_measures_passthrough(server: ServerProcess) -> None:
    ours = Server(server.url, server.pid)
    work = Workload(SPECS["passthrough"], VIDEO, SIZE, seconds=0.5, changes=1, connections=2)

    await asyncio.to_thread(load_pipeline, ours, "passthrough", height=SIZE[0], width=SIZE[1])
    row = await asyncio.to_thread(lambda: measure_served(ours, work, triton_url(ours)))

    assert row["first_frame_ms"]["known_prompt"] > 0
    assert row["fps"] > 0
    assert row["chunks"] > 0
    assert row["failed_chunks"] == 0
    assert row["video_encode_ms_per_frame"] > 0
    assert {"gateway", "triton", "passthrough"} <= row["private_mb"].keys()
    assert "passthrough, video, served" in table([row | {"pipeline": "passthrough", "mode": VIDEO}])
