"""How often one address may ask for connections."""

from gateway.access.post_rate import POSTS_PER_SECOND, PostRate


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_address_may_ask_ten_times_a_second_and_others_are_not_concerned() -> None:
    clock = Clock()
    rate = PostRate(clock)

    at_once = [rate.take("192.0.2.1") for _ in range(2 * POSTS_PER_SECOND)]
    other = rate.take("192.0.2.2")
    clock.now += 1.5 / POSTS_PER_SECOND
    later = [rate.take("192.0.2.1") for _ in range(2)]
    clock.now += 60
    much_later = [rate.take("192.0.2.1") for _ in range(2 * POSTS_PER_SECOND)]

    assert at_once == [True] * POSTS_PER_SECOND + [False] * POSTS_PER_SECOND
    assert other
    assert later == [True, False]
    assert much_later == at_once


def test_addresses_without_end_do_not_fill_the_memory() -> None:
    rate = PostRate(Clock())

    for i in range(10_000):
        rate.take(f"192.0.2.{i}")

    assert len(rate) <= 4096
