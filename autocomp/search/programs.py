"""The knapsack as a linear and as an integer program, solved by HiGHS.

One variable an option and one a sub-block; every group takes one option or belongs to a sub-block
that is bypassed; one row a limited resource, divided by its budget. Forbidden options are held at
0.

Reference: Huangfu and Hall 2018, https://arxiv.org/abs/1503.01756
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array

from autocomp.search.problem import Bools, Floats, Ints, Problem

GAP = 1e-4


@dataclass(frozen=True, eq=False)
class _Program:
    """Scaled columns and rows of a problem at a budget.

    Args:
        score: Of every variable, at most 1 in size, shape (variables,).
        allowed: 1 where a variable may be taken, shape (variables,).
        one_each: One row a group, (groups, variables).
        resources: One row a resource, (1 + limits, variables).
        bounds: What each resource may take, (1 + limits,).
        scales: Score and resource units of the scaled values: (score), (1 + limits,).
    """

    score: Floats
    allowed: Floats
    one_each: csr_array
    resources: Floats
    bounds: Floats
    score_scale: float
    scales: Floats

    @classmethod
    def of(cls, problem: Problem, budget: int) -> "_Program":
        groups, options = problem.score.shape
        score = np.concatenate([problem.score.ravel(), problem.bypass_score])
        allowed = np.isfinite(score)
        scale = float(np.abs(score[allowed]).max(initial=0.0)) or 1.0
        rows = [(problem.cost, problem.bypass_cost, problem.fixed_cost, budget)]
        rows += [(x.cost, x.bypass_cost, x.fixed_cost, x.bound) for x in problem.limits]
        scales = np.array([max(abs(bound), 1) for *_, bound in rows], dtype=np.float64)
        costs = [np.concatenate([table.ravel(), dropped]) for table, dropped, _, _ in rows]
        columns = np.arange(groups * options)
        inside, owner = np.nonzero(problem.membership)
        places = (
            np.concatenate([columns // options, inside]),
            np.concatenate([columns, groups * options + owner]),
        )
        shape = (groups, groups * options + len(problem.bypasses))
        return cls(
            score=np.where(allowed, score / scale, 0.0),
            allowed=allowed.astype(np.float64),
            one_each=coo_array((np.ones(len(places[0])), places), shape=shape).tocsr(),
            resources=np.stack(costs).astype(np.float64) / scales[:, None],
            bounds=np.array([bound - fixed for *_, fixed, bound in rows]) / scales,
            score_scale=scale,
            scales=scales,
        )


def prices(problem: Problem, budget: int) -> Floats | None:
    """Return what a unit of each resource is worth where fractions of options may be taken.

    They are the multipliers of the Lagrangian at its maximum, so that the options that minimise
    ``score + Σ price · cost`` are the best ones but for a few groups.

    Args:
        problem: What to solve.
        budget: Largest total cost of the problem's resource.

    Returns:
        Shape (1 + limits,), nats a unit: of the problem's resource, then of each limit. ``None``
        where not even fractions keep the limits.
    """
    program = _Program.of(problem, budget)
    with _quiet_stdout():
        result = linprog(  # type: ignore[call-overload]  # its stub knows no sparse matrices
            program.score,
            A_ub=program.resources,
            b_ub=program.bounds,
            A_eq=program.one_each,
            b_eq=np.ones(len(problem.groups)),
            bounds=np.stack([np.zeros_like(program.allowed), program.allowed], axis=1),
            method="highs-ds",
        )
    if result.x is None:
        return None
    worth: Floats = np.maximum(-np.asarray(result.ineqlin.marginals), 0.0)
    return worth * program.score_scale / program.scales


def whole(problem: Problem, budget: int, time_limit_s: float) -> tuple[Ints, Bools] | None:
    """Return the decisions of the best solution to a relative gap of 1e-4.

    Rounding in the program may leave a resource a unit over its bound.

    Args:
        problem: What to solve.
        budget: Largest total cost of the problem's resource.
        time_limit_s: When to stop, seconds.

    Returns:
        Choice (groups,) and bypassed (bypasses,); ``None`` when nothing was found in time.
    """
    groups, options = problem.score.shape
    program = _Program.of(problem, budget)
    with _quiet_stdout():
        result = milp(
            program.score,
            integrality=np.ones(len(program.score), dtype=np.int64),
            bounds=Bounds(0, program.allowed),
            constraints=[
                LinearConstraint(program.one_each, 1, 1),
                LinearConstraint(program.resources, ub=program.bounds),
            ],
            options={"mip_rel_gap": GAP, "time_limit": time_limit_s, "disp": False},
        )
    if result.x is None:
        return None
    taken = np.round(result.x)
    choice = taken[: groups * options].reshape(groups, options).argmax(axis=1)
    return choice, taken[groups * options :] > 0.5


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Send file descriptor 1 to nowhere: HiGHS prints to it whatever its options say."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
