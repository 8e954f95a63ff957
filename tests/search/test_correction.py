from dataclasses import replace

import numpy as np
import pytest

from autocomp.core.metric import LEAST_LOSS
from autocomp.core.spec import LayerSpec
from autocomp.search.correction import (
    SPREAD,
    UNKNOWN_UNIT,
    Effects,
    Evidence,
    fit,
    option_class,
    prior_factor,
)
from autocomp.search.knapsack import Bypass, Group, Problem

BITS = (2, 3, 4)


def make(groups: int = 12, seed: int = 0) -> tuple[Problem, Effects]:
    rng = np.random.default_rng(seed)
    made = tuple(
        Group(f"g{i}", np.array([2, 3, 4]), rng.lognormal() * 4.0 ** -np.array([2.0, 3.0, 4.0]))
        for i in range(groups)
    )
    problem = Problem(made, (Bypass("block", (0, 1), 0, 0.05),))
    classes = {group.name: tuple(f"w{bits}" for bits in BITS) for group in made}
    roles = {group.name: ("q_proj", "down_proj")[i % 2] for i, group in enumerate(made)}
    return problem, Effects.of(problem, classes, roles | {"block": "mlp"})


def evidence(problem: Problem, factor, count: int, seed: int = 1) -> list[Evidence]:
    """Random plans and their KL under true factors of shape (groups, options)."""
    rng = np.random.default_rng(seed)
    rows = np.arange(len(problem.groups))
    plans = []
    for _ in range(count):
        choice = rng.integers(0, 3, len(rows))
        kl = float((problem.score * factor)[rows, choice].sum())
        plans.append(Evidence(choice, np.zeros(1, dtype=bool), kl))
    return plans


def test_nothing_measured_gives_the_prior():
    problem, effects = make()
    correction = fit(effects, [])
    choice = np.full(12, 1)
    plan = problem.solution(choice, np.zeros(1, dtype=bool))
    assert correction.predict(plan) == pytest.approx(prior_factor("w3") * plan.score)
    assert np.isnan(correction.leave_one_out)
    prior = np.exp(effects.log_prior)
    assert (correction.factors > prior).all()  # the mean of a log-normal lies above its mode
    expected = correction.apply().solution(choice, np.array([True]))
    assert expected.score > problem.solution(choice, np.array([True])).score


def test_uniform_plans_fix_the_class_factors():
    problem, effects = make()
    truth = np.array([9.0, 4.0, 1.0])
    plans = [
        Evidence(np.full(12, i), np.zeros(1, bool), float(truth[i] * problem.score[:, i].sum()))
        for i in range(3)
    ]
    blank = fit(effects, [])
    for plan in plans:
        solution = problem.solution(plan.choice, plan.bypassed)
        focused = fit(effects, plans, focus=plan.loss).predict(solution)
        assert focused == pytest.approx(plan.loss, rel=0.05)
        assert abs(np.log(blank.predict(solution) / plan.loss)) > 0.3


def test_predicts_unseen_plans_better_than_the_prior_and_says_how_well():
    problem, effects = make()
    rng = np.random.default_rng(5)
    factor = np.array([6.0, 3.0, 1.5]) * rng.lognormal(0, 0.4, (12, 1))
    plans = evidence(problem, factor, 60)
    correction = fit(effects, plans[:40])
    blank = fit(effects, [])

    def error(one) -> float:
        return float(
            np.sqrt(
                np.mean(
                    [
                        np.log(one.predict(problem.solution(p.choice, p.bypassed)) / p.loss) ** 2
                        for p in plans[40:]
                    ]
                )
            )
        )

    assert error(correction) < 0.5 * error(blank)
    assert error(correction) / 3 < correction.leave_one_out < error(correction) * 3


def test_the_posterior_narrows_where_plans_were_measured():
    problem, effects = make()
    plans = [
        plan
        for plan in evidence(problem, np.full((12, 3), 2.0), 40)
        if plan.choice[3] != 0  # option 2 bits of group 3 is never used
    ]
    correction = fit(effects, plans)
    before, after = fit(effects, []).variance, correction.variance
    assert (after <= before + 1e-12).all()
    same_class_and_role = [3 * group for group in (1, 5, 7, 9, 11)]
    assert after[3 * 3] > after[same_class_and_role].max()
    assert after[-1] > after[:-1].max()  # the bypass was never measured

    draws = np.log([correction.sampled_factors(np.random.default_rng(i)) for i in range(3000)])
    np.testing.assert_allclose(draws.var(axis=0), after, rtol=0.15, atol=1e-3)
    calm = correction.sampled_factors(np.random.default_rng(0), temperature=0.0)
    np.testing.assert_allclose(calm, correction.factors)


def test_unusable_measurements_are_left_out():
    problem, effects = make()
    good = evidence(problem, np.full((12, 3), 2.0), 5)
    bad = [Evidence(good[0].choice, good[0].bypassed, value) for value in (float("nan"), np.inf)]
    np.testing.assert_array_equal(fit(effects, good + bad).mode, fit(effects, good).mode)


def test_a_loss_at_the_floor_is_a_very_small_one():
    """A KL whose floor was taken off may be 0 or below; nothing tells it from a tiny one."""
    problem, effects = make()
    plans = evidence(problem, np.full((12, 3), 2.0), 5)
    modes = [
        fit(effects, [*plans, replace(plans[0], loss=loss)], focus=plans[0].loss).mode
        for loss in (-0.3, 0.0, LEAST_LOSS)
    ]
    assert np.isfinite(modes).all()
    np.testing.assert_array_equal(modes[0], modes[2])
    np.testing.assert_array_equal(modes[1], modes[2])


def test_a_loss_in_another_unit_is_learned_from_a_few_plans():
    """Task error a nat is a twentieth of what the prior of nats expects."""
    problem, _ = make()
    fixed = replace(problem, fixed_score=0.4)
    classes = {group.name: tuple(f"w{bits}" for bits in BITS) for group in problem.groups}
    plans = [replace(p, loss=0.4 + 0.1 * p.loss) for p in evidence(problem, np.ones((12, 3)), 12)]
    errors = []
    for common in (SPREAD["common"], UNKNOWN_UNIT):
        known = Effects.of(fixed, classes, {}, common)
        found = fit(known, plans[:6])
        errors.append(
            max(
                abs(found.predict(fixed.solution(p.choice, p.bypassed)) - p.loss)
                for p in plans[6:]
            )
        )
    assert errors[1] < 0.7 * errors[0]


def test_inert_choices_do_not_count():
    problem, effects = make()
    choice = np.full(12, 2)
    other = choice.copy()
    other[:2] = 0
    dropped = np.array([True])
    np.testing.assert_array_equal(effects.row(choice, dropped), effects.row(other, dropped))
    row = effects.row(choice, dropped)
    assert row[-1] == 0.05
    assert row.sum() == pytest.approx(problem.solution(choice, dropped).score)


def test_the_kl_before_compression_is_a_constant_term():
    """Plans whose corrected scores are small measure that constant, not a factor of it."""
    problem, effects = make()
    fixed = replace(problem, fixed_score=0.5)
    effects = replace(effects, problem=fixed)
    choice = np.full(12, 2)
    plan = fixed.solution(choice, np.zeros(1, dtype=bool))
    assert plan.score == pytest.approx(
        0.5 + problem.solution(choice, np.zeros(1, dtype=bool)).score
    )
    rest = plan.score - 0.5
    assert fit(effects, []).predict(plan) == pytest.approx(0.5 + prior_factor("w4") * rest)
    measured = Evidence(choice, np.zeros(1, dtype=bool), 0.5 + 5 * rest)
    assert fit(effects, [measured]).predict(plan) == pytest.approx(0.5 + 5 * rest, rel=0.02)
    assert fit(effects, []).apply().fixed_score == 0.5


def test_a_correction_moves_the_priors_of_another_variant():
    problem, effects = make()
    plans = [
        Evidence(np.full(12, i), np.zeros(1, bool), float(9 * problem.score[:, i].sum()))
        for i in range(3)
    ]
    learned = fit(effects, plans)
    informed = effects.informed_by(learned)
    plan = problem.solution(np.full(12, 1), np.zeros(1, dtype=bool))
    assert fit(informed, []).predict(plan) == pytest.approx(learned.predict(plan), rel=0.05)
    np.testing.assert_array_equal(informed.spread, effects.spread)
    again = effects.informed_by(fit(effects, []))
    np.testing.assert_array_equal(again.log_prior, effects.log_prior)


class _Quantizer:
    bits = 4


class _Activation:
    bits = 8


@pytest.mark.parametrize(
    ("spec", "kind", "expected"),
    [
        (LayerSpec(), "linear", "dense"),
        (LayerSpec(quantizer=_Quantizer()), "linear", "w4"),
        (LayerSpec(quantizer=_Quantizer()), "embedding", "embedding-w4"),
        (LayerSpec(quantizer=_Quantizer(), mask=object()), "linear", "sparse-w4"),
        (LayerSpec(factor=object()), "linear", "rank"),
        (LayerSpec(quantizer=_Quantizer(), activation=_Activation()), "linear", "w4a8"),
        (LayerSpec(quantizer=_Quantizer(), residual=object()), "linear", "w4-corrected"),
        (LayerSpec(quantizer=_Quantizer(), input=object()), "linear", "w4"),
        (LayerSpec(mask=object(), residual=object()), "linear", "sparse-corrected"),
        (LayerSpec(structure=object()), "subblock", "bypass"),
    ],
)
def test_classes(spec, kind, expected):
    assert option_class(spec, kind) == expected


def test_coarser_classes_start_with_larger_factors():
    assert prior_factor("w2") > prior_factor("w3") > prior_factor("w4") > 0
    for name in ("sparse-w3", "w3a8", "w3-corrected"):
        assert prior_factor(name) == prior_factor("w3")


def test_the_loss_of_a_plan_is_shared_out_by_class():
    """Half of the groups at 2 bits, half at 4; what is fixed has a class of its own."""
    problem, effects = make()
    fixed = replace(problem, fixed_score=0.1)
    correction = fit(replace(effects, problem=fixed), [])
    choice = np.repeat([0, 2], 6)
    kept, dropped = np.array([False]), np.array([True])
    shares = correction.class_shares(choice, kept)
    coarse = prior_factor("w2") * problem.score[:6, 0].sum()
    fine = prior_factor("w4") * problem.score[6:, 2].sum()
    total = 0.1 + coarse + fine
    expected = {"w2": coarse / total, "w4": fine / total, "uncompressed": 0.1 / total}
    assert shares == pytest.approx(expected)
    assert set(correction.class_shares(choice, dropped)) == {*expected, "bypass"}
    assert "uncompressed" not in fit(effects, []).class_shares(choice, kept)
