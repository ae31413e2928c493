"""The arithmetic of the benchmarks: where a chunk's time goes, and what a long stream is judged by."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks import latency_runs, passthrough
from benchmarks.chunk_plot import plot_chunks
from benchmarks.chunk_times import (
    ChunkSample,
    EngineTimes,
    beside_real_engines,
    first_frame_of_chunk,
    gaps_ms,
    new_samples,
    overhead,
    split,
)
from benchmarks.common import Server
from benchmarks.endurance import BLANK, grown, judge, new_prompts
from benchmarks.frame_numbers import spread
from benchmarks.latency import table
from benchmarks.latency_runs import CHANGED, TimedEngine, Window, Workload, chunk_numbers, delays, watch
from benchmarks.peer import StreamRecord
from benchmarks.results import write_result
from benchmarks.viewers import Audience, delays_ms, with_ratios
from benchmarks.viewers import table as viewers_table
from streaming.engines.demo import trained_info
from streaming.specs import SPECS, TEXT, VIDEO

LONGLIVE = SPECS["longlive"]
SAMPLES = [
    ChunkSample(4, 110.0, {"denoise": 40.0, "decode": 50.0}),
    ChunkSample(5, 130.0, {"denoise": 60.0, "decode": 50.0, "text": 10.0}),
]


def test_a_chunk_is_split_into_its_steps_and_the_rest() -> None:
    assert split(SAMPLES, denoise_steps=4) == {
        "text": 5.0,
        "denoise": 50.0,
        "decode": 50.0,
        "denoise_per_step": 12.5,
        "outside_of_steps": 15.0,
    }


def test_overhead_is_what_a_chunk_takes_beside_its_engines() -> None:
    assert overhead(SAMPLES, work_ms_per_chunk=100.0) == {
        "chunk_ms": 120.0,
        "engines_ms": 100.0,
        "transfer_ms": 5.0,
        "gateway_grpc_loop_ms": 15.0,
        "ratio": 0.2,
    }


def test_a_window_begins_and_ends_with_a_finished_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else calls of a chunk are counted that is not, or the other way round."""
    stream = SteadyStream()
    clock = SimpleNamespace(monotonic=lambda: stream.calls / 1000, sleep=lambda _: None)  # a call takes 1 ms
    monkeypatch.setattr(latency_runs, "time", clock)
    with httpx.Client(base_url="http://stream", transport=httpx.MockTransport(stream.answer)) as client:
        window = watch(Server("http://stream", None), client, stream, seconds=0.05)

    assert window.engines["transformer"].calls == SteadyStream.CALLS * window.chunks
    assert window.chunks > 2


class SteadyStream:
    """A stream that goes on by an engine call whenever somebody asks how it is, and its counters."""

    CALLS = 5  # of the engine, per chunk

    def __init__(self) -> None:
        self.calls = 3  # it is watched from the middle of a chunk on

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        session = {"chunks": 1 + self.calls // self.CALLS, "last_chunk_ms": 1.0, "timings_ms": {}}
        return httpx.Response(200, json={"sessions": {"x": session}})

    def read(self) -> dict[str, EngineTimes]:
        return {"transformer": EngineTimes(self.calls)}

    def close(self) -> None:
        """Nothing is open."""


def test_overhead_beside_real_engines_is_scaled_to_their_pictures() -> None:
    beside = {"gateway_grpc_loop_ms": 20.0}

    found = beside_real_engines("longlive", beside, pixels=480 * 832 // 4)

    assert found == {"height": 480, "width": 832, "engines_ms": 579.7, "overhead_ms": 80.0, "ratio": 0.138}
    assert beside_real_engines("krea-realtime-video", beside, 1) is None


def test_counters_are_compared_engine_by_engine() -> None:
    engines = {"dit": EngineTimes(10, 1, 2, 80, 3), "longlive": EngineTimes(2, 0, 0, 240, 0)}
    work = Workload(LONGLIVE, TEXT, (160, 288), 1.0, 1, 2)

    numbers = chunk_numbers(work, Window(samples=SAMPLES, seconds=1.0, chunks=2, engines=engines))

    assert numbers["engines"] == {
        "dit": {"calls_per_chunk": 5.0, "work_ms_per_call": 8.0, "transfer_ms_per_call": 0.6}
    }
    assert numbers["overhead"]["engines_ms"] == 40.0  # the pipeline's own model is no engine


def test_engines_in_the_pipelines_process_are_its_steps() -> None:
    engines = {"longlive": EngineTimes(2, 0, 0, 240, 0)}
    work = Workload(LONGLIVE, TEXT, (160, 288), 1.0, 1, 2)

    numbers = chunk_numbers(work, Window(samples=SAMPLES, seconds=1.0, chunks=2, engines=engines))

    assert "engines" not in numbers
    assert numbers["overhead"]["transfer_ms"] == 0.0
    assert (
        numbers["overhead"]["engines_ms"]
        == numbers["overhead"]["chunk_ms"] - (numbers["overhead"]["gateway_grpc_loop_ms"])
    )


def test_metrics_that_tell_nothing_new_are_passed_over() -> None:
    metrics = {"chunks": 6, "last_chunk_ms": 130.0, "timings_ms": {"decode": 50.0}}

    found = new_samples(SAMPLES[:1], metrics)

    assert found == [ChunkSample(5, 130.0, {"decode": 50.0})]
    assert new_samples(found, metrics) == []
    assert new_samples([], {"chunks": 0, "last_chunk_ms": None, "timings_ms": {}}) == []


@pytest.mark.parametrize(
    ("pipeline", "mode", "first_frames"),
    [
        ("longlive", TEXT, [0, 9, 21]),
        ("longlive", VIDEO, [0, 13, 25]),
        ("streamdiffusionv2", VIDEO, [0, 5, 9]),
    ],
)
def test_the_first_picture_of_a_chunk_follows_from_the_chunks_before(
    pipeline: str, mode: str, first_frames: list[int]
) -> None:
    loop = SPECS[pipeline].loop
    assert loop is not None

    assert [first_frame_of_chunk(loop, mode, number) for number in range(3)] == first_frames
    assert first_frame_of_chunk(loop, mode, 2, resets=1) == 2 * first_frames[1]


def test_a_prompts_delay_ends_with_the_first_picture_of_its_chunk() -> None:
    work = Workload(LONGLIVE, TEXT, (160, 288), 1.0, 1, 2)
    record = StreamRecord(received=[(None, index / 10) for index in range(40)])
    line = "2026-11-26 09:23:00,990 - worker - INFO - [0974d711] Chunk 2 changes denoising_step_list, prompts"
    found = CHANGED.search(line)
    assert found is not None

    result = delays(work, [(1.5, int(found.group(1)))], record, {"frames_dropped": 0})

    assert result == {"p50": 600.0, "max": 600.0}
    assert delays(work, [(1.5, 2)], record, {"frames_dropped": 12}) is None


def test_gaps_are_between_neighbours() -> None:
    assert gaps_ms([1.0, 1.5, 1.75]) == [500.0, 250.0]


def test_a_timed_engine_gives_what_the_engine_gives() -> None:
    class Doubler:
        inputs, outputs = ("x",), ("y",)

        def run(self, inputs: Any, outputs: Any) -> Any:
            return {"y": 2 * inputs["x"]}

    times: list[float] = []

    assert TimedEngine(Doubler(), times).run({"x": 4}, ["y"]) == {"y": 8}
    assert len(times) == 1


def test_growth_is_that_after_the_warm_up() -> None:
    sizes = [1.0, 50.0, *np.linspace(100, 104, 8)]

    assert grown(sizes) == {"from": 100.0, "max": 104.0, "by": 4.0}


def test_a_long_stream_fails_for_each_thing_that_went_wrong() -> None:
    samples = [{"time_s": float(i), "chunks": 40.0 * i, "gateway_mb": 100.0 + 4 * i} for i in range(10)]
    times = [*np.arange(0, 50, 0.1), 60.0]
    record = StreamRecord(
        received=[(None, float(t)) for t in times], spreads=[40.0] * (len(times) - 1) + [0.0]
    )

    report = judge(LONGLIVE, samples, record, {"chunks": 300, "failed_chunks": 1})

    failed = {name for name, check in report["checks"].items() if not check["ok"]}
    assert failed == {
        "latent_frames_past_rotary_end",
        "longest_gap_in_chunks",
        "blank_pictures",
        "failed_chunks",
        "growth_of_gateway_mb",
    }
    assert report["blank_at_s"] == [60.0]


def test_a_long_stream_asks_for_what_the_demonstration_knows() -> None:
    """Of other words it makes a plane, which is no fault of the stream."""
    texts = [entry["text"] for (entry,) in itertools.islice(new_prompts(), 4032)]
    sides = [
        re.fullmatch(r"a (?:small |large )?(\w+) \w+ [a-z ]+ on a (\w+) background", text) for text in texts
    ]

    assert len(set(texts)) == len(texts)
    assert all(found is not None and found[1] != found[2] for found in sides)
    assert trained_info().examples[0] in texts


def test_a_picture_is_blank_in_one_colour_and_not_in_two_of_the_same_brightness() -> None:
    red_on_blue = np.full((96, 96, 3), (40, 80, 225), np.uint8)
    red_on_blue[30:60, 30:60] = (220, 40, 40)
    grain = np.random.default_rng(0).integers(100, 103, (96, 96, 3), np.uint8)

    seen, plane = (
        spread(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p"))
        for picture in (red_on_blue, grain)
    )

    assert plane < BLANK < seen


def test_a_table_and_a_picture_are_made_of_what_was_measured(tmp_path: Path) -> None:
    work = Workload(LONGLIVE, TEXT, (160, 288), 1.0, 1, 2)
    window = Window(samples=SAMPLES, seconds=1.0, chunks=2, engines={"dit": EngineTimes(10, work_ms=200.0)})
    head = {"pipeline": "longlive", "mode": TEXT, "size": "160x288", "placement": "served"}
    row = (
        head
        | chunk_numbers(work, window)
        | {"fps": 21.5, "private_mb": {"gateway": 150.0, "longlive": 300.0}}
    )
    refused = head | {"error": "not loaded"}

    lines = table([row, refused]).splitlines()
    plot_chunks([row, refused], tmp_path / "chunks.png")

    assert len({line.count("|") for line in lines}) == 1
    assert "| 20% |" in lines[2]
    assert "not loaded" in lines[3]
    with Image.open(tmp_path / "chunks.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 4


def test_each_server_is_compared_with_the_echo_of_the_same_run() -> None:
    def run(server: str, turn: int, cpu_ms: float) -> dict[str, Any]:
        spread_ms = {"p50": 20.0, "p95": 30.0, "p99": 40.0, "max": 50.0}
        counts = {"lost": 0, "unreadable": 0, "received_kbit_per_s": 2400}
        return {
            "server": server,
            "sessions": 1,
            "round": turn,
            "fps": {"median": 30.0, "min": 30.0},
            "first_frame_ms": {"p50": 100.0},
            "cpu_ms_per_frame": {"server": cpu_ms},
            "delay_ms": spread_ms,
            "gap_ms": spread_ms,
            **counts,
        }

    costs = {"echo": (4.0, 6.0), "ours": (9.0, 11.0), "beside": (12.0, 13.0)}
    runs = [run(name, turn, ms) for name, both in costs.items() for turn, ms in enumerate(both)]

    summary = passthrough.summarized(runs, sessions=1)

    assert summary["ours_to_echo"]["cpu_server_ms_per_frame"] == 2.0
    assert summary["beside_to_echo"]["cpu_server_ms_per_frame"] == 2.5
    assert [line.split("|")[2].strip() for line in passthrough.table([summary]).splitlines()[2:]] == [
        "echo",
        "ours",
        "beside",
        "ours / echo",
        "beside / echo",
    ]


def test_a_viewers_delay_is_from_the_latest_picture_of_that_number_in_the_window() -> None:
    sent = [(0, 1.0), (1, 1.1), (0, 2.0), (1, 2.1)]
    record = StreamRecord(received=[(0, 1.05), (1, 2.0), (None, 2.02), (0, 2.03), (1, 9.0)])

    assert delays_ms(sent, record, 1.5, 3.0) == pytest.approx([900.0, 30.0])


@pytest.mark.parametrize(
    ("all_decode", "asked"),
    [
        (True, ["join"] * 4),
        (False, ["join", "join", "leave", "drain", "drain", "join"]),
    ],
)
def test_those_who_decode_are_all_viewers_or_the_first_and_the_last(
    all_decode: bool, asked: list[str]
) -> None:
    done: list[str] = []

    class Asked:
        def ask(self, command: str, argument: Any = None) -> float:
            done.append(command)
            return 0.1

    peers: Any = Asked()
    audience = Audience(peers, peers, ("url", "id", "VP8"), all_decode=all_decode)
    joins = [audience.grow(count) for count in (1, 2, 4)]

    assert done == asked
    assert joins == [0.1] * 3


def test_more_viewers_are_compared_with_the_fewest_of_their_codec() -> None:
    def row(codec: str, viewers: int, cpu_ms: float, *late: float) -> dict[str, Any]:
        delays = [{"p95": each} for each in late]
        return {
            "codec": codec,
            "viewers": viewers,
            "cpu_ms_per_picture": cpu_ms,
            "delay_ms": delays,
            "join_s": 0.1,
        }

    rows = with_ratios([row("VP8", 1, 4.0, 20.0), row("VP8", 2, 5.0, 21.0, 29.0), row("H264", 1, 2.0, 9.0)])

    assert [(each["cpu_ratio"], each["p95_more_ms"]) for each in rows] == [
        (1.0, 0.0),
        (1.25, 9.0),
        (1.0, 0.0),
    ]
    assert viewers_table(rows).splitlines()[3] == "| VP8 | 2 | 5.0 | 1.25 | 29.0 | 9.0 | 0.1 |"


def test_a_result_tells_the_command_without_the_paths_of_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["fleet.py", "--home", str(tmp_path / "home"), "--losses", "20"])
    written = json.loads(write_result(tmp_path, "fleet", {"rows": []}).read_text())
    assert written["command"] == "python -m benchmarks.fleet --home DIRECTORY --losses 20"
