"""Asymmetric calibration: a weight that makes up for what its compressed inputs lost.

With x what a linear reads in the dense model and x̂ what it reads in the compressed one, a row w is
to be replaced by the q on its grid with the least

    ``E‖q x̂ − w x‖² + λ‖q − w‖² = (q − w*)(H + λI)(q − w*)ᵀ + const``,
    ``w* = w + w D (H + λI)⁻¹``,  ``H = E[x̂ x̂ᵀ]``,  ``D = E[(x − x̂) x̂ᵀ]``.

So every solver under H solves it when it is given w* for w: for GPTQ each column then is rounded
where least squares over all columns still to come would put it. Where both streams agree D is 0
and w* is w. The paper lets the part of a column, ``w_j (x − x̂)_j``, move into the later columns
only, when that column is rounded, and its code weighs that by a quarter; here all of it is there
from the start.

Reference:
    Li et al. 2025, GPTAQ, https://arxiv.org/abs/2504.02692
"""

import torch
from torch import Tensor

from autocomp.core.stats import Stats
from autocomp.methods._column_solver import DAMPING
from autocomp.methods._hessian import cholesky, require

KEPT = "two_streams/change"


def towards_dense(weight: Tensor, stats: Stats | None, method: str) -> Tensor:
    """Return ``w*`` (out, in) of a weight (out, in); the weight itself where there is no D.

    λ is ``0.01 · mean(diag H)``. ``D (H + λI)⁻¹`` is kept for all linears that read the input.

    Raises:
        PlanError: If there is a D and no H.
        NumericalError: If H is not finite or cannot be made positive definite.
    """
    if stats is None or stats.drift is None:
        return weight
    if KEPT not in stats.derived:
        factor = cholesky(require(stats, "hessian", method).double(), DAMPING)
        solved = torch.cholesky_solve(stats.drift.double().T, factor).T
        stats.derived[KEPT] = solved.to(weight)
    change: Tensor = stats.derived[KEPT]
    return weight + weight @ change
