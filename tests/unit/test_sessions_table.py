"""Sessions of a pipeline's model without Triton: commands, numbering, forgetting."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from streaming.errors import UnknownSequenceError, WanstreamError
from streaming.triton.passthrough import Passthrough
from streaming.triton.protocol import ErrorKind, Meta, Op, decode_error, encode_error
from streaming.triton.sessions import (
    ChunkCancelled,
    Images,
    LoadContext,
    ParsedCommand,
    SessionTable,
    Stream,
    StreamSession,
    parse_command,
)

IMAGE = np.zeros((1, 2, 2, 3), np.uint8)


class RecordingStream:
    """Yields `groups` pictures per chunk, fails before number `fail_at`, and remembers what it was given."""

    def __init__(self, groups: int = 1, fail_at: int | None = None, mark_last: bool = True) -> None:
        self.groups, self.fail_at, self.mark_last = groups, fail_at, mark_last
        self.seen: list[dict[str, Any]] = []
        self.closed = 0

    def next_chunk(
        self, parameters: Mapping[str, Any], video: Images | None, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Images, Meta]]:
        self.seen.append(dict(parameters))
        try:
            for number in range(self.groups):
                if number == self.fail_at:
                    raise WanstreamError("It failed. Try again.")
                last = self.mark_last and number == self.groups - 1
                yield IMAGE, Meta(last=True) if last else Meta()
        finally:
            self.closed += 1


def never() -> bool:
    return False


def session_of(stream: Stream) -> StreamSession:
    return StreamSession(lambda: stream)


def run(session: StreamSession, **parameters: Any) -> list[Meta]:
    return [meta for _, meta in session.generate(parameters, None, never)]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("op", list(Op))
def test_every_command_is_understood(op: Op) -> None:
    command = parse_command(f'{{"op": "{op.value}", "parameters": {{"seed": 3}}}}')

    assert command == ParsedCommand(op, {"seed": 3})


@pytest.mark.parametrize("text", ['{"op": "generate"}', b'{"op": "generate", "parameters": null}'])
def test_parameters_of_a_command_may_be_absent(text: str | bytes) -> None:
    assert parse_command(text) == ParsedCommand(Op.GENERATE, {})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "JSON"),
        ("nonsense", "JSON"),
        (b"\xff", "JSON"),
        ("3", "not int"),
        ('"start"', "not str"),
        ("{}", "must be one of generate"),
        ('{"op": 1}', "got 1"),
        ('{"op": {}}', "got {}"),
        ('{"op": "stop", "parameters": "x"}', "not str"),
    ],
)
def test_malformed_command_is_refused_with_the_reason(text: str | bytes, problem: str) -> None:
    with pytest.raises(WanstreamError, match=problem):
        parse_command(text)


def test_a_chunk_is_given_its_own_parameters_and_nothing_of_the_one_before() -> None:
    stream = RecordingStream()
    session = session_of(stream)

    run(session, a=1, init_cache=True)
    run(session, b=2)

    assert stream.seen == [{"a": 1, "init_cache": True}, {"b": 2}]


def test_a_stream_is_opened_by_its_first_chunk() -> None:
    opened: list[Stream] = []
    session = StreamSession(lambda: opened.append(RecordingStream()) or opened[-1])  # type: ignore[func-returns-value]
    before = list(opened)

    run(session)
    run(session)

    assert (len(before), len(opened)) == (0, 1)


@pytest.mark.parametrize("fail_at", [0, 1])
def test_failed_chunk_leaves_its_number_to_the_next_one(fail_at: int) -> None:
    stream = RecordingStream(groups=2, fail_at=fail_at)
    session = session_of(stream)
    with pytest.raises(WanstreamError, match="It failed"):
        run(session)
    stream.fail_at = None

    metas = run(session)

    assert [meta["chunk"] for meta in metas] == [0, 0]


def test_cancelled_chunk_does_not_count_and_closes_the_stream_at_once() -> None:
    stream = RecordingStream(groups=3)
    session = session_of(stream)
    answers = iter([False, True])
    chunk = session.generate({}, None, lambda: next(answers))
    next(chunk)

    with pytest.raises(ChunkCancelled):
        next(chunk)

    assert stream.closed == 1
    assert session.next_chunk == 0


def test_chunk_that_was_finished_before_the_cancellation_counts() -> None:
    session = session_of(RecordingStream(groups=1))

    metas = [meta for _, meta in session.generate({}, None, lambda: True)]

    assert metas == [{"chunk": 0, "last": True}]
    assert session.next_chunk == 1


def test_abandoned_chunk_closes_the_stream_and_does_not_count() -> None:
    stream = RecordingStream(groups=3)
    session = session_of(stream)
    chunk = session.generate({}, None, never)
    next(chunk)

    chunk.close()

    assert stream.closed == 1
    assert session.next_chunk == 0


def test_exactly_the_last_group_is_marked() -> None:
    session = session_of(RecordingStream(groups=3))

    metas = run(session)

    assert [meta["last"] for meta in metas] == [False, False, True]


def test_chunk_without_marked_end_is_closed_by_an_empty_group() -> None:
    session = session_of(RecordingStream(groups=1, mark_last=False))

    groups = list(session.generate({}, None, never))

    assert [len(frames) for frames, _ in groups] == [1, 0]
    assert groups[-1][0].shape[3] == 3
    assert [meta["last"] for _, meta in groups] == [False, True]


def test_chunks_are_numbered_from_zero() -> None:
    session = session_of(RecordingStream())

    assert [run(session)[0]["chunk"] for _ in range(3)] == [0, 1, 2]


def test_sessions_are_found_by_their_id() -> None:
    table = SessionTable(max_idle_s=60)
    first = table.start(1, RecordingStream)
    second = table.start(2, RecordingStream)

    assert table.get(1) is first
    assert table.get(2) is second
    assert len(table) == 2


def test_unknown_session_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnknownSequenceError, match="Start it again"):
        SessionTable(max_idle_s=60).get(1)


def test_start_replaces_a_session_of_the_same_id() -> None:
    table = SessionTable(max_idle_s=60)
    old = table.start(1, RecordingStream)
    run(old)

    table.start(1, RecordingStream)

    assert table.get(1) is not old
    assert table.get(1).next_chunk == 0
    assert len(table) == 1


def test_ended_session_is_gone_and_ending_it_again_is_no_error() -> None:
    table = SessionTable(max_idle_s=60)
    table.start(1, RecordingStream)

    table.end(1)
    table.end(1)

    assert 1 not in table


def test_silent_sessions_are_forgotten_and_used_ones_kept() -> None:
    clock = Clock()
    table = SessionTable(max_idle_s=60, clock=clock)
    table.start(1, RecordingStream)
    table.start(2, RecordingStream)
    clock.now += 59
    table.get(2)
    clock.now += 2

    expired = table.expire()

    assert expired == [1]
    assert 1 not in table
    assert 2 in table


def test_session_is_kept_until_the_limit_is_passed() -> None:
    clock = Clock()
    table = SessionTable(max_idle_s=60, clock=clock)
    table.start(1, RecordingStream)
    clock.now += 60

    assert table.expire() == []


def test_session_whose_chunk_takes_long_is_kept_and_is_used_until_the_end() -> None:
    clock = Clock()
    table = SessionTable(max_idle_s=60, clock=clock)
    session = table.start(1, RecordingStream)
    clock.now += 70

    during = table.expire(busy=[session])
    table.touch(session)
    clock.now += 50

    assert (during, table.expire()) == ([], [])


@pytest.mark.parametrize("kind", list(ErrorKind))
@pytest.mark.parametrize("text", ["It failed. Try again.", "Fatally bad", ""])
def test_error_text_survives_the_wire(text: str, kind: ErrorKind) -> None:
    assert decode_error(encode_error(text, kind)) == (text, kind)


class NoModels:
    def is_ready(self, name: str) -> bool:
        return False

    def run(self, name: str, inputs: Mapping[str, Any], outputs: list[str]) -> dict[str, Any]:
        raise WanstreamError(f"There is no model {name}.")

    def load(self, name: str) -> None:
        raise WanstreamError(f"There is no model {name}.")

    def unload(self, name: str) -> None: ...


@pytest.mark.parametrize("video", [None, np.zeros((0, 4, 4, 3), np.uint8)])
def test_passthrough_without_pictures_says_what_to_do(tmp_path: Any, video: Images | None) -> None:
    stream = Passthrough(LoadContext({"height": "512"}, NoModels(), tmp_path)).open_stream()

    with pytest.raises(WanstreamError, match="Input cannot be None for PassthroughPipeline: send pictures"):
        list(stream.next_chunk({}, video, never))


def test_passthrough_yields_its_input_in_one_last_group(tmp_path: Any) -> None:
    video = np.random.default_rng(1).integers(0, 256, (4, 5, 7, 3), np.uint8)
    stream = Passthrough(LoadContext({}, NoModels(), tmp_path)).open_stream()

    groups = list(stream.next_chunk({"height": 8, "width": 8}, video, never))

    assert len(groups) == 1
    assert np.array_equal(groups[0][0], video)
    assert groups[0][1] == {"last": True}
