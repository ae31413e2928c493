"""When the packets of a picture leave."""

import pytest

from gateway.webrtc.pacing import Pacer

PACKET = 1250  # bytes: 10 kbit


class Network:
    """Sends pictures by a pacer, on a clock that goes on while packets wait."""

    def __init__(self) -> None:
        self.now = 0.0
        self._pacer = Pacer(lambda: self.now)

    def send(
        self, packets: int, bitrate: int, period_s: float = 1 / 30, *, narrow: bool = False, waiting: int = 0
    ) -> list[float]:
        """Send a picture; the seconds from its begin at which its packets left."""
        self._pacer.begin(packets * PACKET, bitrate, period_s, narrow=narrow, waiting=waiting)
        began, left = self.now, []
        for _ in range(packets):
            left.append(self.now - began)
            self.now += self._pacer.sent(PACKET)
        return left


@pytest.mark.parametrize("fps", [8, 30])
def test_pictures_of_the_usual_size_leave_at_once(fps: int) -> None:
    network = Network()
    usual = 7_000_000 // fps // (8 * PACKET)

    left = []
    for _ in range(10):
        began = network.now
        left += network.send(usual, 7_000_000, 1 / fps)
        network.now = began + 1 / fps

    assert left == [0.0] * 10 * usual


def test_a_key_frame_is_spread_over_less_than_the_time_of_a_picture() -> None:
    network = Network()

    left = network.send(3 * 7_000_000 // 30 // (8 * PACKET), 7_000_000)

    assert left == sorted(left)
    assert 0.01 < left[-1] <= 1 / 30


def test_on_a_narrow_network_a_key_frame_keeps_close_to_its_rate() -> None:
    network = Network()

    left = network.send(11, 425_000, narrow=True)  # 110 kbit

    at_once = sum(at == 0 for at in left)
    assert 1 <= at_once <= 3
    assert 500_000 * (left[-1] + 0.02) >= 110_000 - 30_000  # what 500 kbit/s carry until then
    assert left[-1] <= 0.5


def test_a_picture_that_is_too_large_for_the_network_is_not_late_without_end() -> None:
    left = Network().send(100, 100_000, narrow=True)

    assert left[-1] <= 0.5


def test_pictures_that_wait_are_let_through() -> None:
    alone = Network().send(11, 425_000, narrow=True)[-1]
    followed = Network().send(11, 425_000, narrow=True, waiting=9)[-1]

    assert followed == pytest.approx(alone / 10, abs=0.002)


def test_a_pause_between_pictures_empties_the_bucket() -> None:
    network = Network()
    first = network.send(11, 425_000, narrow=True)
    network.now += 1

    assert network.send(11, 425_000, narrow=True) == pytest.approx(first)
