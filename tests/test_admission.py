from contextlib import ExitStack

import pytest

from reidserve.errors import ConfigError, DeadlineError, OverloadedError
from reidserve.server.queries.admission import HALF_LIFE_SECONDS, Admission, Pace
from reidserve.server.queries.limits import Limits


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


class Rejections(list[str]):
    """A telemetry that keeps why calls were refused."""

    def stage(self, name: str, seconds: float) -> None:
        raise AssertionError("admission has no stages")

    def batch(self, images: int, seconds: float) -> None:
        raise AssertionError("admission has no batches")

    def rejected(self, reason: str) -> None:
        self.append(reason)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> Rejections:
    return Rejections()


@pytest.fixture
def admission(clock: Clock, told: Rejections) -> Admission:
    return Admission(most=100, seconds=5.0, load=10, telemetry=told, clock=clock)


def let_in(admission: Admission, images: int, deadline: float | None = None) -> None:
    with admission.admitted(images, deadline):
        assert admission.under_way >= images


def leave_one_by_one(admission: Admission, clock: Clock, *, seconds: float) -> None:
    """Forty images come at once, and one leaves in every so many seconds."""
    with ExitStack() as held:
        for _ in range(40):
            held.enter_context(admission.admitted(1))
            held.callback(clock.forward, seconds)


def test_images_are_counted_whatever_call_they_came_with(admission: Admission, told: Rejections):
    with admission.admitted(60), admission.admitted(1), admission.admitted(39):
        assert admission.under_way == 100
        with pytest.raises(OverloadedError, match="100 images are under way and 1 came, the most .* is 100: try again"):
            let_in(admission, 1)
    with admission.admitted(60), pytest.raises(OverloadedError):
        let_in(admission, 41)
    assert admission.under_way == 0
    assert told == ["OVERLOADED", "OVERLOADED"]
    let_in(admission, 100)


def test_a_call_that_fails_gives_its_places_back(admission: Admission):
    with pytest.raises(ValueError, match="mine"), admission.admitted(7):
        raise ValueError("mine")
    assert admission.under_way == 0


def test_a_refused_call_is_told_a_second_where_no_pace_is_known(admission: Admission):
    with admission.admitted(100), pytest.raises(OverloadedError) as refused:
        let_in(admission, 1)
    assert refused.value.retry_after == 1.0


def test_a_refused_call_is_told_when_what_is_under_way_will_be_through(admission: Admission, clock: Clock):
    leave_one_by_one(admission, clock, seconds=0.04)
    with admission.admitted(90), pytest.raises(OverloadedError, match="try again in 3.6 s") as known:
        let_in(admission, 30)
    assert known.value.retry_after == pytest.approx(90 * 0.04)


def test_a_call_that_cannot_be_through_by_its_deadline_is_refused_at_once(
    admission: Admission, clock: Clock, told: Rejections
):
    leave_one_by_one(admission, clock, seconds=0.04)
    with admission.admitted(49):
        with pytest.raises(DeadlineError, match="49 images are under way, which takes 2.0 s, and the call has 1.9 s"):
            let_in(admission, 1, clock.now + 1.9)
        let_in(admission, 1, clock.now + 2.01)
    with pytest.raises(DeadlineError, match="0.500 s after its deadline"):
        let_in(admission, 1, clock.now - 0.5)
    assert told == ["DEADLINE_EXCEEDED"] * 2


def test_nobody_waits_for_longer_than_the_limit(admission: Admission, clock: Clock):
    leave_one_by_one(admission, clock, seconds=0.1)
    wait = "50 images are under way, which takes 5.1 s, the longest wait is 5 s"
    with admission.admitted(50), pytest.raises(OverloadedError, match=wait):
        let_in(admission, 1)


def test_where_few_are_under_way_everybody_is_let_in_however_slow_it_was(admission: Admission, clock: Clock):
    leave_one_by_one(admission, clock, seconds=60.0)
    with admission.admitted(9), admission.admitted(60, clock.now + 0.001):
        pass
    with admission.admitted(10), pytest.raises(OverloadedError):
        let_in(admission, 1)


def test_time_without_load_says_nothing_of_the_pace(admission: Admission, clock: Clock):
    leave_one_by_one(admission, clock, seconds=0.04)
    for _ in range(100):
        with admission.admitted(1):
            clock.now += 30
    with admission.admitted(90), pytest.raises(OverloadedError) as refused:
        let_in(admission, 30)
    assert refused.value.retry_after == pytest.approx(90 * 0.04)


def test_the_pace_is_that_of_the_last_seconds():
    pace = Pace()
    for _ in range(1000):
        pace.add(0.01, 1)
    assert pace.seconds(10) == pytest.approx(0.1)
    for _ in range(200):
        pace.add(HALF_LIFE_SECONDS / 10, 1)
    assert pace.seconds(10) == pytest.approx(HALF_LIFE_SECONDS, rel=1e-3)
    assert Pace().seconds(10) is None


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"queue_seconds": 0.0}, "limit queue_seconds must be above 0, got 0.0"),
        ({"stuck_seconds": float("nan")}, "limit stuck_seconds must be above 0, got nan"),
        ({"decoders": 0}, "limit decoders must be above 0, got 0"),
        ({"images_in_flight": 10}, "images_per_call must be at most images_in_flight, 10.*; got 64"),
        ({"top_k": 10_001}, "top_k must be at most 10,000, got 10,001"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(wrong: dict, match: str):
    with pytest.raises(ConfigError, match=match):
        Limits(**wrong)
