"""Rungs nest, and the gate stops only what is clearly worse."""

import numpy as np
import pytest

from autocomp.evaluate.ladder import Ladder, clearly_worse


def test_rungs_are_whole_windows_capped_by_the_text():
    assert Ladder.from_tokens((1000, 4096, 10**6), 512, 20).windows == (2, 8, 20)
    assert Ladder.from_tokens((1024, 1030), 512, 3).windows == (2, 3)


def test_gate_never_stops_a_better_plan():
    rng = np.random.default_rng(0)
    for _ in range(200):
        rival = rng.gamma(4.0, 0.1, size=8)
        better = rival * rng.uniform(0.5, 1.0)
        assert not clearly_worse(better, rival)


def test_gate_stops_what_is_clearly_worse():
    rng = np.random.default_rng(0)
    rival = rng.gamma(4.0, 0.1, size=32)
    assert clearly_worse(3 * rival[:2], rival)
    assert clearly_worse(1.3 * rival[:8] * rng.uniform(0.95, 1.05, 8), rival)


def test_gate_keeps_what_may_be_noise():
    rival = np.array([0.10, 0.30, 0.05, 0.40, 0.20, 0.10, 0.30, 0.20])
    noisy = rival[::-1] * 1.2
    assert not clearly_worse(noisy, rival)


@pytest.mark.parametrize("count", [2, 8])
def test_false_stops_of_equal_plans_are_rare(count):
    """Plans of equal KL with independent 15 % window noise: far below the nominal 5 %."""
    rng = np.random.default_rng(1)
    level = rng.gamma(4.0, 0.1, size=(2000, count))
    noise = rng.lognormal(0, 0.15, size=(2, 2000, count))
    stops = [clearly_worse(a, b) for a, b in zip(level * noise[0], level * noise[1], strict=True)]
    assert np.mean(stops) < 0.05
