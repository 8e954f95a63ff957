"""Stages add up."""

import time

from autocomp.search.clock import Clock


def test_visits_add_up_and_shares_are_of_the_whole():
    clock = Clock()
    for _ in range(3):
        with clock.time("a"):
            time.sleep(0.01)
    clock.add("b", 0.5)
    rows = {row["stage"]: row for row in clock.table()}
    assert rows["a"]["visits"] == 3
    assert rows["a"]["seconds"] >= 0.03
    assert rows["b"]["seconds"] == 0.5
    assert rows["total"]["seconds"] >= rows["a"]["seconds"]
    assert rows["a"]["peak_rss_bytes"] > 1e6


def test_an_iterator_is_timed_without_its_consumer():
    clock = Clock()

    def slow():
        for item in range(3):
            time.sleep(0.01)
            yield item + 1

    for _ in clock.each("inside", slow()):
        time.sleep(0.03)
    seconds = clock.stages["inside"].seconds
    assert 0.03 <= seconds < 0.09


def test_a_clock_goes_on_from_an_earlier_table():
    first = Clock()
    first.add("a", 2.0)
    again = Clock(first.table())
    again.add("a", 1.0)
    rows = {row["stage"]: row for row in again.table()}
    assert rows["a"]["seconds"] == 3.0
    assert rows["a"]["visits"] == 2
    assert rows["total"]["seconds"] >= first.table()[-1]["seconds"]
