import pytest

from reidserve.errors import GenerationGoneError
from reidserve.index import FolderSnapshot
from reidserve.server.queries.pins import KEPT_SECONDS, MOST_KEPT, Pins


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pins(clock: Clock) -> Pins:
    return Pins(clock=clock)


STATES = [FolderSnapshot(generation, 8) for generation in range(20)]


def test_the_newest_state_is_kept_once_it_was_asked_for_by_its_number(pins: Pins):
    assert pins.at("mall", 3, newest=STATES[3]) is STATES[3]
    assert pins.at("mall", 3, newest=STATES[9]) is STATES[3]
    with pytest.raises(
        GenerationGoneError, match="generation 4 of gallery 'mall' is not served, it is at generation 9"
    ):
        pins.at("mall", 4, newest=STATES[9])
    with pytest.raises(GenerationGoneError, match="begin again with the newest"):
        pins.at("shop", 3, newest=STATES[9])
    with pytest.raises(GenerationGoneError, match="generation 10 .* within about a second, try again"):
        pins.at("mall", 10, newest=STATES[9])


def test_a_state_is_let_go_a_while_after_it_was_last_asked_for(pins: Pins, clock: Clock):
    pins.keep("mall", STATES[1])
    for _ in range(3):
        clock.now += KEPT_SECONDS
        assert pins.at("mall", 1, newest=STATES[2]) is STATES[1]
    clock.now += KEPT_SECONDS + 0.1
    pins.drop_old()
    clock.now -= KEPT_SECONDS
    with pytest.raises(GenerationGoneError):
        pins.at("mall", 1, newest=STATES[2])


def test_a_state_that_is_too_old_is_not_answered_by_before_anything_lets_go_of_it(pins: Pins, clock: Clock):
    pins.keep("mall", STATES[1])
    clock.now += KEPT_SECONDS + 0.1
    with pytest.raises(GenerationGoneError):
        pins.at("mall", 1, newest=STATES[2])


def test_what_was_not_asked_for_longest_makes_room(pins: Pins):
    for generation in range(MOST_KEPT):
        pins.keep("mall", STATES[generation])
    pins.at("mall", 0, newest=STATES[10])
    pins.keep("mall", STATES[10])
    kept = [generation for generation in range(11) if _has(pins, generation)]
    assert kept == [0, *range(2, MOST_KEPT), 10]


def _has(pins: Pins, generation: int) -> bool:
    return ("mall", generation) in pins._kept
