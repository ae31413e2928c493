"""How fast one viewer is sent to, from what is known of its network."""

from gateway.config import Bitrate
from gateway.stream.encoding.rate import LinkRate, RateLimits

LIMITS = RateLimits(Bitrate(5_000_000, 7_000_000, 10_000_000))
SIZE = (832, 480)


class Viewer:
    """A link with a clock, to which 30 pictures are sent per second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.link = LinkRate(lambda: self.now)

    def watch(self, bits_per_second: int, seconds: float = 1.0) -> None:
        for _ in range(round(30 * seconds)):
            self.now += 1 / 30
            self.link.sent(bits_per_second // 8 // 30)

    @property
    def wanted(self) -> int:
        return self.link.wanted(LIMITS, *SIZE)


def test_the_configured_default_counts_until_the_viewer_reports() -> None:
    assert Viewer().wanted == 7_000_000


def test_small_pictures_get_a_lower_bitrate_range() -> None:
    assert LIMITS.default(832, 480) == 7_000_000
    assert LIMITS.clamp(1, 832, 480) == 5_000_000
    assert LIMITS.clamp(1, 256, 256) < 1_000_000
    assert LIMITS.clamp(10**9, 256, 256) < 2_000_000


def test_an_estimate_that_is_low_because_little_is_sent_is_not_believed() -> None:
    viewer = Viewer()
    viewer.watch(100_000)

    viewer.link.report(160_000)

    assert viewer.wanted == 5_000_000


def test_a_picture_that_begins_to_move_keeps_the_floor_although_the_estimate_lags_behind() -> None:
    viewer = Viewer()
    viewer.watch(100_000)
    viewer.link.report(160_000)
    viewer.watch(5_000_000)

    viewer.link.report(173_000)

    assert viewer.wanted == 5_000_000


def test_an_estimate_that_fell_and_stays_far_below_what_is_sent_wins_over_the_floor() -> None:
    viewer = Viewer()
    viewer.link.report(6_000_000)
    viewer.watch(5_000_000)
    viewer.link.report(1_700_000)
    after_one = viewer.wanted
    viewer.watch(5_000_000)

    viewer.link.report(1_700_000)

    assert after_one == 5_000_000
    assert 1_200_000 < viewer.wanted < 1_700_000


def test_an_estimate_that_falls_a_little_below_what_is_sent_without_loss_changes_nothing() -> None:
    viewer = Viewer()
    viewer.link.report(6_000_000)

    for _ in range(5):
        viewer.watch(5_000_000)
        viewer.link.report(3_500_000)

    assert viewer.wanted == 5_000_000


def test_an_estimate_below_what_is_sent_wins_when_packets_get_lost() -> None:
    viewer = Viewer()
    viewer.link.report(1_000_000)
    viewer.watch(5_000_000)

    viewer.link.lost(0.06)

    assert 700_000 < viewer.wanted < 1_000_000


def test_heavy_loss_counts_before_the_viewer_reports_a_lower_estimate() -> None:
    viewer = Viewer()
    viewer.link.report(9_000_000)
    viewer.watch(5_000_000)

    viewer.link.lost(0.6)

    assert 1_500_000 < viewer.wanted < 2_000_000


def test_a_little_loss_on_a_wide_link_changes_nothing() -> None:
    viewer = Viewer()
    viewer.link.report(9_000_000)
    viewer.watch(5_000_000)

    viewer.link.lost(0.03)

    assert viewer.wanted == 9_000_000


def test_the_range_is_back_when_the_estimate_has_climbed() -> None:
    viewer = Viewer()
    viewer.link.report(6_000_000)
    viewer.watch(5_000_000)
    viewer.link.lost(0.6)

    climbing = []
    for estimate in (2_000_000, 4_000_000, 5_900_000, 8_000_000):
        viewer.watch(viewer.wanted)
        viewer.link.report(estimate)
        climbing.append(viewer.wanted)

    assert climbing == sorted(climbing)
    assert climbing[-1] == 8_000_000


def test_a_viewer_that_never_reports_is_tried_again_after_its_loss() -> None:
    viewer = Viewer()
    viewer.watch(7_000_000)
    viewer.link.lost(0.7)
    low = viewer.wanted

    for _ in range(40):
        viewer.watch(viewer.wanted)
        viewer.link.lost(0.0)

    assert low < 2_200_000
    assert viewer.wanted >= 5_000_000


def test_no_estimate_is_too_low_to_send_anything() -> None:
    viewer = Viewer()
    viewer.watch(5_000_000)
    viewer.link.lost(0.5)

    viewer.link.report(1_000)

    assert viewer.wanted == 100_000


def test_lost_packets_do_not_take_the_place_of_new_ones() -> None:
    viewer = Viewer()
    viewer.watch(1_000_000)
    at_once = sum(viewer.link.may_repeat() for _ in range(1000))
    viewer.watch(1_000_000)

    later = sum(viewer.link.may_repeat() for _ in range(1000))

    assert at_once == 50
    assert 20 <= later <= 25


def narrow_viewer(estimate: int) -> Viewer:
    """One whose network lost half of what was sent, and who reports `estimate` since."""
    viewer = Viewer()
    viewer.watch(5_000_000)
    viewer.link.lost(0.5)
    viewer.link.report(estimate)
    return viewer


def seconds_without_loss(viewer: Viewer, seconds: int, estimate: int) -> list[int]:
    """What is wanted after each second of one large picture, a report of loss and one of the estimate."""
    wanted = []
    for _ in range(seconds):
        viewer.now += 1.0
        viewer.link.sent(13_700)
        viewer.link.lost(0.0)
        viewer.link.report(estimate)
        wanted.append(viewer.wanted)
    return wanted


def test_the_rate_climbs_to_the_floor_while_the_estimate_stands_still_and_nothing_is_lost() -> None:
    viewer = narrow_viewer(150_000)

    wanted = seconds_without_loss(viewer, 20, 150_000)

    assert wanted[1] < 150_000
    assert wanted == sorted(wanted)
    assert wanted[-1] == 5_000_000


def test_a_rate_that_climbed_too_far_steps_back_and_waits() -> None:
    viewer = narrow_viewer(150_000)
    high = seconds_without_loss(viewer, 8, 150_000)[-1]

    viewer.link.lost(0.06)
    after = viewer.wanted
    waiting = seconds_without_loss(viewer, 6, 150_000)
    again = seconds_without_loss(viewer, 1, 150_000)[0]

    assert 150_000 < after < 0.75 * high
    assert waiting == [after] * 6
    assert again > after


def test_an_estimate_that_falls_ends_the_climb() -> None:
    viewer = narrow_viewer(150_000)
    seconds_without_loss(viewer, 8, 150_000)

    viewer.link.report(120_000)

    assert viewer.wanted <= 120_000


def test_an_estimate_that_moves_by_itself_is_followed() -> None:
    viewer = narrow_viewer(1_000_000)

    for estimate in (1_050_000, 1_100_000, 1_150_000, 1_200_000, 1_250_000):
        wanted = seconds_without_loss(viewer, 1, estimate)

    assert wanted == [round(0.85 * 1_250_000)]


def test_key_frames_are_rare_on_a_narrow_network_only() -> None:
    wide, narrow = Viewer(), narrow_viewer(150_000)

    sent = []
    for viewer in (wide, narrow):
        viewer.link.may_send_key_frame()
        at_once = viewer.link.may_send_key_frame()
        viewer.now += 1.1
        sent.append((at_once, viewer.link.may_send_key_frame()))

    assert sent == [(True, True), (False, True)]


def test_a_limit_of_ours_is_not_taken_for_a_movement_of_the_viewers_estimate() -> None:
    viewer = narrow_viewer(150_000)
    viewer.watch(150_000)
    viewer.link.lost(0.3)  # which lowers what counts of the estimate
    viewer.now += 2.5
    viewer.link.report(150_000)
    still = viewer.wanted
    viewer.now += 1

    viewer.link.lost(0.0)  # the first report after so long without loss that it may climb

    assert viewer.wanted > still == round(0.85 * 150_000)
