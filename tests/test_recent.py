"""What a pipeline did in the last seconds, by a clock that the test turns."""

import pytest

from reidserve.server.queries.recent import MOST_LATENCIES, WINDOW_SECONDS, Recent
from reidserve.server.queries.telemetry import SILENT


class Clock:
    def __init__(self) -> None:
        self.now = 1000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recent(clock) -> Recent:
    return Recent(SILENT, clock=clock)


def test_nothing_was_done_where_nothing_was(recent):
    figures = recent.figures()
    assert (figures.calls, figures.rejected, figures.images) == (0, 0, 0)
    assert (figures.batch_size, figures.p50, figures.p99) == (None, None, None)
    assert figures.window == 1.0


def test_rates_are_of_the_seconds_since_it_began_and_of_no_more_than_the_window(recent, clock):
    for _ in range(8):
        recent.answered(0.01)
    recent.rejected("OVERLOADED")
    recent.rejected("OVERLOADED")
    clock.now += 4
    figures = recent.figures()
    assert (figures.window, figures.calls, figures.rejected) == (4, 2, 0.5)
    clock.now += 4
    assert recent.figures().calls == 1
    clock.now += WINDOW_SECONDS
    assert recent.figures().calls == 0
    assert recent.figures().p50 is None
    assert recent.figures().window == WINDOW_SECONDS - 1 + 0.25


def test_latencies_are_those_that_a_part_of_the_calls_do_not_exceed(recent):
    for milliseconds in range(100, 0, -1):
        recent.answered(milliseconds / 1000)
    figures = recent.figures()
    assert (figures.p50, figures.p99) == (0.05, 0.099)


def test_of_many_calls_the_last_ones_are_looked_at(recent):
    for _ in range(5):
        recent.answered(9.0)
    for _ in range(MOST_LATENCIES):
        recent.answered(0.5)
    assert (recent.figures().p99, recent.figures().calls) == (0.5, 5 + MOST_LATENCIES)


def test_batches_are_as_large_as_they_are_on_average(recent, clock):
    recent.batch(1, 0.01)
    recent.batch(7, 0.02)
    clock.now += 2
    figures = recent.figures()
    assert (figures.batch_size, figures.images) == (4, 4)


def test_telemetry_is_told_all_the_same(clock):
    told = []

    class Told:
        def stage(self, name: str, seconds: float) -> None:
            told.append((name, seconds))

        def batch(self, images: int, seconds: float) -> None:
            told.append((images, seconds))

        def rejected(self, reason: str) -> None:
            told.append(reason)

    recent = Recent(Told(), clock=clock)
    recent.stage("decode", 0.5)
    recent.batch(3, 0.1)
    recent.rejected("OVERLOADED")
    assert told == [("decode", 0.5), (3, 0.1), "OVERLOADED"]
