"""What further viewers of one stream cost, and how late they see it, by their number and codec.

    python -m benchmarks.viewers --viewers 1,2,4,8,16 --seconds 15
    python -m benchmarks.viewers --private   # an encoder for each, to compare
    python -m benchmarks.viewers --decode ends   # the server's part of the delay, on a machine of few cores

One peer sends numbered pictures through `passthrough` and watches nothing; viewers in another process join
its stream one after another, and decode. Eight that decode take the same pictures at the same time, on the
cores that the server has, too: with `--decode ends` only the first one and the last one do, which the server
sends to first and last, and the others between them take their packets and drop them.

CPU is the gateway's for each picture of the stream, the decoding of the camera included; in ratio to one
viewer in the same run it holds on a busy machine, too.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common import (
    BenchmarkError,
    Server,
    add_common_options,
    cpu_seconds,
    gateway,
    load_pipeline,
    machine_busy_seconds,
    percentiles,
    processes_by_role,
)
from benchmarks.passthrough import matches
from benchmarks.peer import PeerOptions, Stream, StreamRecord, encode_loop
from benchmarks.results import write_result
from gateway.webrtc.aiortc_patches.jitter_buffer import install_jitter_buffer

CODECS = ("VP8", "H264")
WARM_UP_S = 3.0
ANSWER_S = 120.0
BITRATE = "2000000"

Row = dict[str, Any]


def main() -> None:
    """Run the benchmark from the command line."""
    options = _options()
    for name in ("MIN", "DEFAULT", "MAX"):
        os.environ.setdefault(f"WANSTREAM_VIDEO_BITRATE_{name}", BITRATE)
    os.environ["WANSTREAM_SHARED_ENCODERS"] = "off" if options.private else "on"
    try:
        rows = _measure_all(options)
    except BenchmarkError as error:
        sys.exit(f"The benchmark failed: {error}")
    settings = {
        "size": "{1}x{0}".format(*options.size),
        "fps": options.fps,
        "seconds": options.seconds,
        "private": options.private,
        "decode": options.decode,
        "bitrate": int(os.environ["WANSTREAM_VIDEO_BITRATE_DEFAULT"]),
    }
    print(write_result(options.out, "viewers", {"settings": settings, "rows": rows}))
    print(table(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--viewers", type=_numbers, default=[1, 2, 4, 8, 16], help="1,2,4,8,16")
    parser.add_argument("--codecs", type=lambda text: text.split(","), default=list(CODECS), help="VP8,H264")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of one measurement")
    parser.add_argument("--decode", choices=("all", "ends"), default="all", help="which viewers do")
    parser.add_argument("--private", action="store_true", help="WANSTREAM_SHARED_ENCODERS=off")
    add_common_options(parser)
    parser.set_defaults(size=(320, 576), fps=15)
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return sorted(int(number) for number in text.split(","))


def _measure_all(options: argparse.Namespace) -> list[Row]:
    rows = []
    camera = PeerOptions(height=options.size[0], width=options.size[1], fps=options.fps)
    with gateway() as server:
        load_pipeline(server)
        for codec in options.codecs:
            with Peers(camera) as owner, Peers() as viewers, Peers() as between:
                address = (server.url, f"viewers-{codec.lower()}", codec)
                owner.ask("publish", address[:2])
                audience = Audience(viewers, between, address, all_decode=options.decode == "all")
                for count in options.viewers:
                    join_s = audience.grow(count)
                    encoders = count if options.private else 1
                    row = measure(server, owner, viewers, codec, encoders, options.seconds)
                    row |= {"viewers": count, "join_s": round(join_s, 3)}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    return with_ratios(rows)


class Audience:
    """The viewers that there are, in the order in which they joined.

    all_decode: False: only the first one and the last one do; those between them are in another process.
    """

    def __init__(
        self, viewers: "Peers", between: "Peers", address: tuple[str, str, str], *, all_decode: bool
    ) -> None:
        self._viewers, self._between, self._address = viewers, between, address
        self._all_decode = all_decode
        self._decoding = self._idle = 0

    def grow(self, count: int) -> float:
        """Have `count` of them; the seconds from the last one's offer to its first picture."""
        join_s = 0.0
        if not self._all_decode:
            if self._decoding > 1:  # it would not be the last one any more
                self._viewers.ask("leave")
                self._decoding -= 1
            while self._decoding and self._idle < count - 2:
                self._between.ask("drain", self._address)
                self._idle += 1
        while self._decoding + self._idle < count:
            join_s = self._viewers.ask("join", self._address)
            self._decoding += 1
            if not self._all_decode and self._decoding == 1:
                return max(join_s, self.grow(count))
        return join_s


def measure(
    server: Server, owner: "Peers", viewers: "Peers", codec: str, encoders: int, seconds: float
) -> Row:
    """One row: what the viewers that there are see, and what they cost. encoders: that take each picture."""
    time.sleep(WARM_UP_S)
    processes = processes_by_role(server)["gateway"]
    began, cpu, busy = time.monotonic(), cpu_seconds(processes), machine_busy_seconds()
    encoded = pictures_encoded(server, codec)
    time.sleep(seconds)
    end = time.monotonic()
    cpu, busy = cpu_seconds(processes) - cpu, machine_busy_seconds() - busy
    pictures = (pictures_encoded(server, codec) - encoded) / encoders
    sent = owner.ask("records")[0].sent
    delays = [delays_ms(sent, record, began, end) for record in viewers.ask("records")]
    return {
        "codec": codec,
        "pictures_per_s": round(pictures / (end - began), 1),
        "cpu_ms_per_picture": round(1000 * cpu / max(1.0, pictures), 2),
        "machine_cores": round(busy / (end - began), 2),
        "seen_per_s": [round(len(each) / (end - began), 1) for each in delays],
        "delay_ms": [percentiles(each, 50, 95) for each in delays],
    }


def delays_ms(
    sent: Sequence[tuple[int, float]], record: StreamRecord, began: float, end: float
) -> list[float]:
    """How long after it was sent each picture was seen that came between `began` and `end`."""
    both = StreamRecord(sent=list(sent), received=record.received)
    found = [(index, at) for index, at in matches(both) if index is not None and began <= at < end]
    return [1000 * (at - sent[index][1]) for index, at in found]


def pictures_encoded(server: Server, codec: str) -> float:
    """How many pictures encoders of this codec have taken, from the server's metrics."""
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "wanstream_encode_seconds_count" and sample.labels == {"codec": codec}:
                return sample.value
    return 0.0


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows with CPU and delay in relation to the fewest viewers of the same codec."""
    found = []
    for row in rows:
        first = next(each for each in rows if each["codec"] == row["codec"])
        late = max((each["p95"] or 0.0) for each in row["delay_ms"])
        least = max((each["p95"] or 0.0) for each in first["delay_ms"])
        ratio = row["cpu_ms_per_picture"] / first["cpu_ms_per_picture"]
        found.append(
            {**row, "cpu_ratio": round(ratio, 2), "p95_ms": late, "p95_more_ms": round(late - least, 1)}
        )
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    columns = ("codec", "viewers", "cpu_ms_per_picture", "cpu_ratio", "p95_ms", "p95_more_ms", "join_s")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(
        [*lines, *("| " + " | ".join(str(row[name]) for name in columns) + " |" for row in rows)]
    )


@dataclass(slots=True)
class _Peers:
    """The streams of a child process, in the order in which they were opened."""

    camera: PeerOptions | None
    streams: list[Stream]

    async def publish(self, arguments: tuple[str, str]) -> None:
        """Send the camera's pictures to a stream of that name."""
        url, name = arguments
        assert self.camera is not None
        stream = Stream(url, encode_loop(self.camera), self.camera.fps, watches=False)
        self.streams.append(stream)
        await stream.publish(name)

    async def join(self, arguments: tuple[str, str, str]) -> float:
        """One more viewer; the seconds from its offer to its first picture."""
        url, stream_id, codec = arguments
        stream = Stream(url, None, 0, join={"streamId": stream_id, "role": "viewer"}, codec=codec)
        self.streams.append(stream)
        return await stream.open()

    async def drain(self, arguments: tuple[str, str, str]) -> None:
        """One more viewer, who does not decode."""
        await self.join(arguments)
        self.streams[-1].drop_packets()

    async def leave(self, _: object) -> None:
        """The last one leaves."""
        await self.streams.pop().close()

    async def records(self, _: object) -> list[StreamRecord]:
        return [stream.record for stream in self.streams]

    async def close(self, _: object) -> None:
        await asyncio.gather(*(stream.close() for stream in self.streams))


class Peers:
    """A process with peers in it. camera: what the one that publishes sends."""

    def __init__(self, camera: PeerOptions | None = None) -> None:
        context = mp.get_context("spawn")
        self._pipe, remote = context.Pipe()
        self._process = context.Process(target=_main, args=(remote, camera), daemon=True)
        self._process.start()
        remote.close()

    def ask(self, command: str, argument: Any = None) -> Any:
        """Call a method of the `_Peers` there. Raises BenchmarkError."""
        self._pipe.send((command, argument))
        if not self._pipe.poll(ANSWER_S):
            raise BenchmarkError(f"The peers did not answer {command} within {ANSWER_S:.0f} s")
        try:
            ok, value = self._pipe.recv()
        except EOFError:
            raise BenchmarkError(f"The peers died with exit code {self._process.exitcode}") from None
        if not ok:
            raise BenchmarkError(value)
        return value

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BenchmarkError, OSError):
            self.ask("close")
        self._process.terminate()
        self._process.join()


def _main(pipe: Connection, camera: PeerOptions | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    install_jitter_buffer()
    asyncio.run(_serve(pipe, _Peers(camera, [])))


async def _serve(pipe: Connection, peers: _Peers) -> None:
    while True:
        command, argument = await asyncio.to_thread(pipe.recv)
        try:
            pipe.send((True, await getattr(peers, command)(argument)))
        except Exception:  # process boundary: the parent raises it
            pipe.send((False, traceback.format_exc()))


if __name__ == "__main__":
    main()
