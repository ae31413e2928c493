"""Whose chunk is made next, and which ones end because nobody wants them any more."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from streaming.triton.sessions import StreamSession
from streaming.triton.turns import Turn, Turns

SOON_S = 20.0


def session() -> StreamSession:
    return StreamSession(lambda: pytest.fail("no chunk is made here"))


@dataclass
class Work:
    """A turn that lasts until it is told to end, or is not wanted any more."""

    session: StreamSession
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    outcome: str = ""
    pictures: bool = False

    @property
    def turn(self) -> Turn:
        return Turn(self.session, self._serve, self._skip)

    def _serve(self, turn: Turn) -> None:
        turn.has_pictures = self.pictures
        self.begun.set()
        while not turn.unwanted and not self.may_end.wait(0.001):
            pass
        self.outcome = "stopped" if turn.unwanted else "made"
        self.ended.set()

    def _skip(self) -> None:
        self.outcome = "skipped"
        self.ended.set()


@pytest.fixture
def turns() -> Iterator[Turns]:
    turns = Turns()
    yield turns
    turns.close()


def put(turns: Turns, *works: Work) -> None:
    for work in works:
        turns.put(work.turn)


def test_turns_are_taken_one_after_another(turns: Turns) -> None:
    one, two = Work(session()), Work(session())
    put(turns, one, two)
    assert one.begun.wait(SOON_S)

    begun_too_early = two.begun.is_set()
    one.may_end.set()

    assert two.begun.wait(SOON_S)
    assert not begun_too_early
    two.may_end.set()
    assert two.ended.wait(SOON_S)
    assert (one.outcome, two.outcome) == ("made", "made")


def test_newer_parameters_end_a_chunk_that_has_shown_nothing(turns: Turns) -> None:
    work = Work(session())
    put(turns, work)
    assert work.begun.wait(SOON_S)

    turns.give_up(work.session)

    assert work.ended.wait(SOON_S)
    assert work.outcome == "stopped"


def test_newer_parameters_do_not_end_a_chunk_whose_pictures_are_on_their_way(turns: Turns) -> None:
    work = Work(session(), pictures=True)
    put(turns, work)
    assert work.begun.wait(SOON_S)

    turns.give_up(work.session)
    work.may_end.set()

    assert work.ended.wait(SOON_S)
    assert work.outcome == "made"


def test_a_viewer_who_leaves_ends_also_a_chunk_whose_pictures_are_on_their_way(turns: Turns) -> None:
    work = Work(session(), pictures=True)
    put(turns, work)
    assert work.begun.wait(SOON_S)

    turns.abandon(work.session)

    assert work.ended.wait(SOON_S)
    assert work.outcome == "stopped"


@pytest.mark.parametrize("end", [Turns.give_up, Turns.abandon])
def test_a_chunk_that_waits_is_answered_at_once_and_others_are_left_alone(turns: Turns, end: object) -> None:
    running, waiting = Work(session()), Work(session())
    put(turns, running, waiting)
    assert running.begun.wait(SOON_S)

    end(turns, waiting.session)  # type: ignore[operator]

    assert waiting.outcome == "skipped"
    assert not running.ended.is_set()
    running.may_end.set()


def test_a_stream_that_gives_up_a_waiting_chunk_keeps_its_place(turns: Turns) -> None:
    a, b, c = session(), session(), session()
    first = [Work(one) for one in (a, b, c)]
    put(turns, *first)
    for work in first:
        work.may_end.set()
        assert work.ended.wait(SOON_S)
    running, given_up, other = Work(a), Work(b), Work(c)
    put(turns, running, given_up, other)
    assert running.begun.wait(SOON_S)
    turns.give_up(b)
    again = Work(b)
    put(turns, again)

    running.may_end.set()

    assert again.begun.wait(SOON_S)
    assert not other.begun.is_set()
    again.may_end.set()
    other.may_end.set()


def test_those_who_wait_and_who_have_their_turn_are_busy(turns: Turns) -> None:
    one, two = Work(session()), Work(session())
    put(turns, one, two)
    assert one.begun.wait(SOON_S)

    busy = turns.busy
    one.may_end.set()
    two.may_end.set()

    assert set(busy) == {one.session, two.session}


def test_work_that_fails_does_not_end_the_others(turns: Turns, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(turn: Turn) -> None:
        raise RuntimeError("the answer could not be sent")

    turns.put(Turn(None, fail, lambda: None))
    work = Work(session())
    work.may_end.set()
    put(turns, work)

    assert work.ended.wait(SOON_S)
    assert "could not be sent" in capfd.readouterr().err


def test_what_waits_when_the_model_is_closed_is_answered() -> None:
    turns, running, waiting = Turns(), Work(session()), Work(session())
    put(turns, running, waiting)
    assert running.begun.wait(SOON_S)
    closing = threading.Thread(target=turns.close)
    closing.start()

    running.may_end.set()
    closing.join(SOON_S)

    assert (running.outcome, waiting.outcome) == ("made", "skipped")
