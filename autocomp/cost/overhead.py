"""What whole models take beside their operations, fitted on a few of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from autocomp.core.errors import ConfigError
from autocomp.cost.times import Overhead

TERMS = 4


@dataclass(frozen=True, slots=True)
class ModelRun:
    """A whole model that was timed.

    Args:
        ops_s: Sum over its operations of their times alone, seconds.
        attentions: Attentions that it keeps.
        mlps: MLPs that it keeps.
        seconds: Measured time of a step.
    """

    ops_s: float
    attentions: int
    mlps: int
    seconds: float


def predicted_s(overhead: Overhead, run: ModelRun) -> float:
    """Return the time of a run by the model: ``scale · ops + fixed + Σ sub-blocks``, seconds."""
    blocks = run.attentions * overhead.attention_s + run.mlps * overhead.mlp_s
    return overhead.scale * run.ops_s + overhead.fixed_s + blocks


def fit_overhead(runs: Sequence[ModelRun]) -> Overhead:
    """Return the overhead that explains some runs best, no term negative.

    ``min Σ_i (1 − predicted_i / seconds_i)²`` by non-negative least squares. Runs should differ in
    their operations and in the sub-blocks that they keep, else terms stand in for one another.

    Args:
        runs: At least four.

    Raises:
        ConfigError: If there are fewer.

    Reference: Lawson and Hanson 1974, Solving Least Squares Problems, chapter 23.
    """
    if len(runs) < TERMS:
        raise ConfigError(
            f"an overhead of {TERMS} terms needs at least {TERMS} whole-model runs, got "
            f"{len(runs)}."
        )
    rows = np.array([[run.ops_s, 1.0, run.attentions, run.mlps] for run in runs])
    seconds = np.array([run.seconds for run in runs])
    table = rows / seconds[:, None]
    size = np.maximum(np.linalg.norm(table, axis=0), np.finfo(float).tiny)
    terms = nnls(table / size, np.ones(len(runs)))[0] / size
    error = float(np.median(np.abs(table @ terms - 1)))
    scale, fixed, attention, mlp = map(float, terms)
    return Overhead(scale, fixed, attention, mlp, len(runs), error)
