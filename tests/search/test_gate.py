"""Who is given up at a rung, and by what a trial may know of others."""

from dataclasses import replace

import numpy as np

from autocomp.search.gate import Gate
from autocomp.search.records import TrialRecord

UNITS = 32


def trial(number: int, losses: np.ndarray, size: int = 100, state: str = "COMPLETE"):
    return TrialRecord(
        number=number, logical=number, state=state, origin="step", family="quantized",
        plan_json="{}", digest=str(number), params={}, weight_bytes=size,
        loss=float(losses.mean()), unit_loss=tuple(losses),
    )  # fmt: skip


def told() -> list[TrialRecord]:
    """Plans that differ by a factor and some noise a unit, on windows of common difficulty."""
    rng = np.random.default_rng(0)
    common = rng.lognormal(0, 0.5, UNITS)
    levels = (1.0, 1.1, 1.3, 2.0)
    return [
        trial(i, level * common * rng.lognormal(0, 0.05, UNITS), 100 + i)
        for i, level in enumerate(levels)
    ]


def test_the_rival_is_the_best_fully_measured_plan_that_is_no_larger():
    plans = told()
    assert Gate.of(plans, 103, UNITS).rival == plans[0].unit_loss
    assert Gate.of(plans[1:], 103, UNITS).rival == plans[1].unit_loss
    assert Gate.of(plans, 99, UNITS) is None
    stopped = [replace(plans[0], state="PRUNED"), *plans[1:]]
    assert Gate.of(stopped, 103, UNITS).rival == plans[1].unit_loss


def test_a_candidate_twice_as_bad_stops_early_and_an_equal_one_does_not():
    plans = told()
    gate = Gate.of(plans[:3], 103, UNITS)
    assert gate.prior is not None
    assert gate.stops(plans[3].unit_loss[:4])
    assert not gate.stops(plans[0].unit_loss[:4])
    assert not gate.stops([0.9 * value for value in plans[0].unit_loss[:16]])


def test_what_was_stopped_tells_nothing_of_the_spread():
    plans = told()
    short = trial(9, np.array(plans[3].unit_loss[:2]), state="PRUNED")
    assert Gate.of([*plans, short], 200, UNITS) == Gate.of(plans, 200, UNITS)


def test_the_rival_is_one_that_costs_no_more_whatever_the_cost():
    """By milliseconds the first plan is the dearest, by bytes the cheapest."""
    slow = [
        replace(record, costs={"decode_ms": 9.0 - record.number}, minimised="decode_ms")
        for record in told()
    ]
    by_time = Gate.of(slow, 6.5, UNITS)
    assert by_time is not None
    assert by_time.rival == slow[3].unit_loss
    by_bytes = Gate.of(told(), 100, UNITS)
    assert by_bytes is not None
    assert by_bytes.rival == told()[0].unit_loss
