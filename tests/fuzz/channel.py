"""Random data-channel messages on a live stream, which has to go on."""

import asyncio
import itertools
import json
import multiprocessing
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor

import hypothesis
import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.messages import Message, messages
from tests.server.client import HttpClient
from tests.server.gateway_calls import session_parameters, sessions
from tests.server.peer import Peer, until

_FRAMES_EVERY = 20  # batches
_ANSWER_WITHIN_S = 60.0  # on a machine that has other work
_MAX_GROWTH_BYTES = 100 << 20  # caches fill, and a double notes every chunk; a leak per message exceeds it

Batch = list[Message]


async def fuzz_channel(client: HttpClient, pid: int, seconds: float, seed: int) -> int:
    """Send random messages to the loaded text pipeline of the server with process id `pid`; how many.

    AssertionError when the stream stops, when the message after a batch is not obeyed (the batch is named
    then), when memory grows without limit, or when a session is left behind.
    """
    fuzzer = _Fuzzer(client, pid, seconds)
    async with fuzzer.peer:
        await fuzzer.peer.connect({"prompts": ["a"]})
        await fuzzer.peer.wait_frames(5)
        await fuzzer.explore(seed)
        await fuzzer.check_stream()
    fuzzer.assert_memory_bounded()
    await until(lambda: _no_sessions(client), 30, "no session left")
    return fuzzer.sent


async def _no_sessions(client: HttpClient) -> bool:
    return not await sessions(client)


class _Fuzzer:
    """One peer and what was done with it."""

    def __init__(self, client: HttpClient, pid: int, seconds: float) -> None:
        self.peer = Peer(client)
        self.sent = 0
        self._process = psutil.Process(pid)
        self._started = time.monotonic()
        self._seconds = seconds
        self._resident: list[tuple[float, int]] = []  # seconds since the start, bytes

    async def explore(self, seed: int) -> None:
        """Send batches until the time is over."""
        number = 0
        async for batch in batches(seed):
            if time.monotonic() - self._started > self._seconds:
                return
            number += 1
            await self._exchange(number, batch)
            if number % _FRAMES_EVERY == 0:
                await self.check_stream()

    async def check_stream(self) -> None:
        """Asserts that new frames arrive; notes the memory in use."""
        await self.peer.wait_frames(2, _ANSWER_WITHIN_S)
        assert not [m for m in self.peer.messages if m.get("type") == "stream_stopped"]
        self.peer.frames.clear()
        self.peer.messages.clear()
        self._resident.append((time.monotonic() - self._started, self._process.memory_info().rss))

    def assert_memory_bounded(self) -> None:
        """Compares the end with the time when a third of the run was over."""
        settled = next(used for at, used in self._resident if at >= self._seconds / 3)
        growth = self._resident[-1][1] - settled
        assert growth < _MAX_GROWTH_BYTES, f"{growth >> 20} MiB more after {self.sent} messages"

    async def _exchange(self, number: int, batch: Batch) -> None:
        for message in batch:
            self.peer.send(message)
        self.sent += len(batch)
        # Whatever the batch says about these keys does not matter any more: the last value counts.
        self.peer.send(json.dumps({"base_seed": number, "paused": False, "input_mode": "text"}))
        await until(lambda: self._seed_is(number), _ANSWER_WITHIN_S, f"obedience after {batch!r}")

    async def _seed_is(self, number: int) -> bool:
        return bool((await session_parameters(self.peer.client)).get("base_seed") == number)


async def batches(seed: int) -> AsyncIterator[Batch]:
    """Endless batches of messages; the same ones for the same seed.

    Made in a process of their own: Hypothesis seeds the random numbers that aiortc uses, too, and making some
    takes seconds, in which this peer would neither answer nor acknowledge anything.
    """
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        coming = loop.run_in_executor(pool, _some_batches, seed)
        for number in itertools.count(seed + 1):
            made = await coming
            coming = loop.run_in_executor(pool, _some_batches, number)
            for batch in made:
                yield batch


def _some_batches(seed: int) -> list[Batch]:
    made: list[Batch] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(messages(), min_size=1, max_size=5))
    def collect(batch: Batch) -> None:
        made.append(batch)

    collect()
    return made
