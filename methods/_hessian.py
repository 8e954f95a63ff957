"""Cholesky factors of input second moments, with the damping that makes them exist."""

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.stats import Stats

ATTEMPTS = 4


def require(stats: Stats | None, name: str, method: str, size: int | None = None) -> Tensor:
    """Return a calibration statistic, checked.

    Args:
        stats: Statistics of the site.
        name: Field of :class:`Stats` whose last axis is the inputs: ``hessian`` (in, in),
            ``norms`` (in,), ``sample`` (n, in).
        method: Who asks; used in messages.
        size: Expected number of inputs; ``None`` takes any.

    Raises:
        PlanError: If the statistic was not collected or belongs to a layer of another width.
    """
    value = None if stats is None else getattr(stats, name)
    if value is None:
        raise PlanError(f"{method} needs the calibration statistic {name!r}, which is missing.")
    if size is not None and value.shape[-1] != size:
        raise PlanError(f"{method}: {name!r} has {value.shape[-1]} inputs, the weight {size}.")
    return value


def finite(matrix: Tensor) -> Tensor:
    """Return second moments unchanged.

    Raises:
        NumericalError: If they hold NaN or infinity.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise NumericalError("the second moments hold NaN or infinity; check the calibration run.")
    return matrix


def cholesky(matrix: Tensor, damping: float, first: float | None = None) -> Tensor:
    """Return the lower Cholesky factor of ``matrix + d·mean(diag matrix)·I``.

    Args:
        matrix: (n, n), symmetric, fp64.
        damping: The smallest ``d > 0``; raised tenfold, up to three times, while the
            factorisation fails.
        first: Tried before ``damping`` when given; 0 leaves a positive definite matrix as it is.

    Returns:
        (n, n) fp64, lower triangular.

    Raises:
        NumericalError: If the matrix is not finite or stays indefinite at the largest damping.
    """
    scale = float(finite(matrix).diagonal().mean()) or 1.0
    dampings = [damping * 10**attempt for attempt in range(ATTEMPTS)]
    for amount in dampings if first is None else [first, *dampings]:
        damped = matrix.clone()
        damped.diagonal().add_(amount * scale)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return factor
    raise NumericalError(
        f"the second moments are not positive definite, even with damping {dampings[-1]:g}; "
        "use more calibration text."
    )
