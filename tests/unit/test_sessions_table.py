"""Sessions of a pipeline's model without Triton: commands, merging, numbering, forgetting."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from streaming.errors import WanstreamError
from streaming.passthrough import Passthrough
from streaming.protocol import ONE_SHOT, Meta, Op, decode_error, encode_error
from streaming.sessions import (
    ChunkCancelled,
    Images,
    LoadContext,
    ParsedCommand,
    SessionTable,
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


def run(session: StreamSession, **changes: Any) -> list[Meta]:
    return [meta for _, meta in session.generate(changes, None, never)]


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
        ("{}", "must be one of start"),
        ('{"op": 1}', "got 1"),
        ('{"op": {}}', "got {}"),
        ('{"op": "start", "parameters": "x"}', "not str"),
    ],
)
def test_malformed_command_is_refused_with_the_reason(text: str | bytes, problem: str) -> None:
    with pytest.raises(WanstreamError, match=problem):
        parse_command(text)


def test_changes_are_merged_into_the_parameters() -> None:
    stream = RecordingStream()
    session = StreamSession(stream, {"a": 1, "b": 1})

    run(session, b=2)
    run(session, c=3)

    assert stream.seen == [{"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}]


def test_nested_values_are_replaced_as_a_whole() -> None:
    stream = RecordingStream()
    session = StreamSession(stream, {"prompts": {"x": 1, "y": 2}})

    run(session, prompts={"x": 5})

    assert stream.seen == [{"prompts": {"x": 5}}]


@pytest.mark.parametrize("key", sorted(ONE_SHOT))
def test_one_shot_key_reaches_one_chunk_only(key: str) -> None:
    stream = RecordingStream()
    session = StreamSession(stream, {key: "first"})

    run(session)
    run(session)
    run(session, **{key: "again"})
    run(session)

    assert [seen.get(key) for seen in stream.seen] == ["first", None, "again", None]


@pytest.mark.parametrize("fail_at", [0, 1])
def test_failed_chunk_leaves_parameters_and_number_alone(fail_at: int) -> None:
    stream = RecordingStream(groups=2, fail_at=fail_at)
    session = StreamSession(stream, {"a": 1})
    with pytest.raises(WanstreamError, match="It failed"):
        run(session, a=2)
    stream.fail_at = None

    metas = run(session)

    assert stream.seen == [{"a": 2}, {"a": 1}]
    assert [meta["chunk"] for meta in metas] == [0, 0]


def test_one_shot_key_of_a_failed_chunk_is_not_kept() -> None:
    stream = RecordingStream(fail_at=0)
    session = StreamSession(stream)
    with pytest.raises(WanstreamError, match="It failed"):
        run(session, init_cache=True)
    stream.fail_at = None

    run(session)

    assert stream.seen == [{"init_cache": True}, {}]


def test_cancelled_chunk_leaves_parameters_alone_and_closes_the_stream_at_once() -> None:
    stream = RecordingStream(groups=3)
    session = StreamSession(stream, {"a": 1})
    answers = iter([False, True])
    chunk = session.generate({"a": 2}, None, lambda: next(answers))
    next(chunk)

    with pytest.raises(ChunkCancelled):
        next(chunk)

    assert stream.closed == 1
    assert session.parameters == {"a": 1}
    assert session.next_chunk == 0


def test_chunk_that_was_finished_before_the_cancellation_counts() -> None:
    session = StreamSession(RecordingStream(groups=1), {"a": 1})

    metas = [meta for _, meta in session.generate({"a": 2}, None, lambda: True)]

    assert metas == [{"chunk": 0, "last": True}]
    assert session.parameters == {"a": 2}


def test_abandoned_chunk_closes_the_stream_and_leaves_parameters_alone() -> None:
    stream = RecordingStream(groups=3)
    session = StreamSession(stream, {"a": 1})
    chunk = session.generate({"a": 2}, None, never)
    next(chunk)

    chunk.close()  # type: ignore[attr-defined]

    assert stream.closed == 1
    assert session.parameters == {"a": 1}


def test_exactly_the_last_group_is_marked() -> None:
    session = StreamSession(RecordingStream(groups=3))

    metas = run(session)

    assert [meta["last"] for meta in metas] == [False, False, True]


def test_chunk_without_marked_end_is_closed_by_an_empty_group() -> None:
    session = StreamSession(RecordingStream(groups=1, mark_last=False))

    groups = list(session.generate({}, None, never))

    assert [len(frames) for frames, _ in groups] == [1, 0]
    assert groups[-1][0].shape[3] == 3
    assert [meta["last"] for _, meta in groups] == [False, True]


def test_chunks_are_numbered_from_zero() -> None:
    session = StreamSession(RecordingStream())

    assert [run(session)[0]["chunk"] for _ in range(3)] == [0, 1, 2]


def test_sessions_are_found_by_their_id() -> None:
    table = SessionTable(max_idle_s=60)
    first = table.start(1, RecordingStream(), {})
    second = table.start(2, RecordingStream(), {})

    assert table.get(1) is first
    assert table.get(2) is second
    assert len(table) == 2


def test_unknown_session_is_refused_with_what_to_do() -> None:
    with pytest.raises(WanstreamError, match="Start it again"):
        SessionTable(max_idle_s=60).get(1)


def test_start_replaces_a_session_of_the_same_id() -> None:
    table = SessionTable(max_idle_s=60)
    old = table.start(1, RecordingStream(), {"a": 1})
    run(old)

    table.start(1, RecordingStream(), {"b": 2})

    assert table.get(1).parameters == {"b": 2}
    assert table.get(1).next_chunk == 0
    assert len(table) == 1


def test_parameters_of_the_caller_are_not_shared_with_the_session() -> None:
    table = SessionTable(max_idle_s=60)
    parameters = {"a": 1}
    table.start(1, RecordingStream(), parameters)

    parameters["a"] = 2

    assert table.get(1).parameters == {"a": 1}


def test_ended_session_is_gone_and_ending_it_again_is_no_error() -> None:
    table = SessionTable(max_idle_s=60)
    table.start(1, RecordingStream(), {})

    table.end(1)
    table.end(1)

    assert 1 not in table


def test_silent_sessions_are_forgotten_and_used_ones_kept() -> None:
    clock = Clock()
    table = SessionTable(max_idle_s=60, clock=clock)
    table.start(1, RecordingStream(), {})
    table.start(2, RecordingStream(), {})
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
    table.start(1, RecordingStream(), {})
    clock.now += 60

    assert table.expire() == []


@pytest.mark.parametrize("fatal", [True, False])
@pytest.mark.parametrize("text", ["It failed. Try again.", "Fatally bad", ""])
def test_error_text_survives_the_wire(text: str, fatal: bool) -> None:
    assert decode_error(encode_error(text, fatal=fatal)) == (text, fatal)


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
