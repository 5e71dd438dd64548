from contextlib import closing
from threading import Event

import pytest

from reidserve.embed import map_ahead


def test_what_is_under_way_is_cut_short_where_the_consumer_leaves_early():
    started, given_up = Event(), Event()

    def answer(number: int) -> int:
        if number:
            started.set()
            assert given_up.wait(60)
        return number

    with closing(map_ahead(answer, range(9), ahead=1, give_up=given_up.set)) as answers:
        assert next(answers) == 0
        assert started.wait(60)
    assert given_up.is_set()


def test_what_is_under_way_is_cut_short_where_one_fails():
    given_up = Event()

    def answer(number: int) -> int:
        if number:
            assert given_up.wait(60)
        return 1 // number

    with pytest.raises(ZeroDivisionError):
        list(map_ahead(answer, range(9), ahead=1, give_up=given_up.set))


def test_nothing_is_given_up_where_all_is_answered():
    given_up = Event()
    assert list(map_ahead(str, range(5), ahead=2, give_up=given_up.set)) == ["0", "1", "2", "3", "4"]
    assert not given_up.is_set()
