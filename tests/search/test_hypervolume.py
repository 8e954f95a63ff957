"""How a front grows, against a reference that stays."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.search.front import Front, FrontPoint
from autocomp.search.hypervolume import HypervolumeCurve, hypervolumes, reference_point
from autocomp.search.joint import joint_front
from autocomp.search.records import TrialRecord

REFERENCE = (1.5, 6000)
points = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 6), st.booleans()), max_size=10
).map(lambda rows: [FrontPoint(n, (kl / 4, 1000 * size), ok) for n, (kl, size, ok) in
                    enumerate(rows)])  # fmt: skip


@given(points)
def test_it_never_falls_and_ends_at_the_fronts(found):
    values = hypervolumes(found, REFERENCE)
    assert len(values) == len(found)
    assert all(one <= other * (1 + 1e-12) for one, other in itertools.pairwise(values))
    for count in range(1, len(found) + 1):
        whole = Front.from_points(found[:count]).hypervolume(REFERENCE)
        assert values[count - 1] == pytest.approx(whole)


def trial(number: int, loss: float | None, size: int, origin: str, state: str = "COMPLETE"):
    return TrialRecord(
        number=number, logical=number, state=state, origin=origin, family="quantized",
        plan_json="{}", digest=str(number), params={}, weight_bytes=size, loss=loss,
    )  # fmt: skip


def test_the_reference_is_the_worst_baseline_at_the_limit():
    told = [
        trial(0, 0.4, 70, "uniform"),
        trial(1, 0.9, 50, "uniform"),
        trial(2, None, 40, "uniform", "PRUNED"),
        trial(3, 2.0, 90, "probe:sparse"),
    ]
    assert reference_point(told, 80) == (0.9, 80)
    assert reference_point(told, None) == (0.9, 70)
    assert reference_point([*told, trial(4, 5.0, 99, "step")], None) == (0.9, 70)
    assert reference_point(told[2:3], 80) is None


def test_without_baselines_it_is_the_first_measured_plan():
    told = [trial(0, None, 9, "random", "FAIL"), trial(1, 0.7, 60, "random"),
            trial(2, 0.9, 70, "random")]  # fmt: skip
    assert reference_point(told, None) == (0.7, 60)
    assert reference_point(told[::-1], 80) == (0.7, 80)


def test_the_json_names_the_reference_and_has_a_row_a_trial():
    curve = HypervolumeCurve("kl_nats", "decode_ms", (2.0, 5.0), (3, 7), (0.0, 2.5))
    assert curve.to_json() == {
        "reference": {"kl_nats": 2.0, "decode_ms": 5.0},
        "by_trial": [
            {"trial": 3, "hypervolume": 0.0, "share": 0.0},
            {"trial": 7, "hypervolume": 2.5, "share": 0.25},
        ],
    }


def test_a_joint_front_keeps_what_is_best_in_any_cost():
    def timed(number: int, loss: float, size: int, ms: float, origin: str = "step"):
        return replace(trial(number, loss, size, origin), costs={"decode_ms": ms})

    told = [
        timed(0, 0.8, 80, 4.0, "uniform"),
        timed(1, 0.4, 60, 5.0),
        timed(2, 0.4, 70, 2.0),
        timed(3, 0.5, 70, 3.0),
    ]
    found = joint_front(told, "kl_nats", {"decode_ms": 8.0})
    assert found.trials == (1, 2)
    assert found.to_json()["reference"] == {
        "kl_nats": 0.8, "weight_bytes": 80, "decode_ms": 8.0,
    }  # fmt: skip
    volume = 0.4 * (20 * 3 + 10 * 6 - 10 * 3)  # two boxes less what they share
    assert found.hypervolume == pytest.approx(volume)
    assert found.share == pytest.approx(volume / (0.8 * 80 * 8))
    assert joint_front([trial(0, 0.4, 70, "uniform")], "kl_nats", {}) is None
    assert joint_front([], "kl_nats", {}) is None
