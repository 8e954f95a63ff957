"""AWQ: scale up the input channels that matter, so that rounding hurts them less."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.method import Reader
from autocomp.core.spec import InputSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._steps import ScaleMethod

RATIOS = 20
SMALLEST_POWER = 1e-4
ROWS = 128
FINALISTS = 4
STRIP = 128


@dataclass(frozen=True, slots=True)
class AwqSpec(InputSpec):
    """Scale channels by a power of their mean magnitude: ``awq``, as in ``awq+rtn-w4g64``."""

    method: ClassVar[str] = "awq"


class Awq(ScaleMethod):
    """``s = max(E|x|^r, 1e-4) / √(max s · min s)`` with the best r of 0, 0.05, …, 0.95.

    The best r has the least error of the readers' outputs, ``Σ tr(D H Dᵀ)`` over weights (out, in)
    with ``D = Q(W s)/s − W``; Q rounds to nearest on the reader's grid, which is clipped only
    afterwards, if at all. r = 0 is no scaling. About 128 rows of each weight tell which four r may
    be best; these and 0 are then compared in full.

    The paper measures the error on sampled tokens, and behind the attention or MLP that the
    readers belong to. Here it is that of the linears themselves, under the second moments
    ``H = E[x xᵀ]`` of all calibration tokens.

    Reference:
        Lin et al. 2023, AWQ, https://arxiv.org/abs/2306.00978
    """

    spec: ClassVar[type[AwqSpec]] = AwqSpec
    version: ClassVar[int] = 1
    usual: ClassVar[str] = "awq+rtn-{grid}-clip"
    summary: ClassVar[str] = "scale up channels with large inputs before rounding"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.00978"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.ABSMEAN, Needs.HESSIAN})

    def scale(self, readers: Sequence[Reader], spec: AwqSpec, stats: Stats | None) -> Tensor:
        """Return s (in,) fp32, values of float16.

        Raises:
            PlanError: If mean magnitudes or second moments of the input are missing.
        """
        width = readers[0].weight.shape[1]
        absmean = require(stats, "absmean", "awq", width)
        upper = require(stats, "hessian", "awq", width).triu()
        upper.diagonal().mul_(0.5)

        def candidate(index: int) -> Tensor:
            power = (absmean ** (index / RATIOS)).clamp_min(SMALLEST_POWER)
            return (power / (power.max() * power.min()).sqrt()).half().float()

        def error(index: int, rows: int | None = None) -> float:
            scale = candidate(index)
            return sum(_error(reader, scale, upper, rows) for reader in readers)

        ranked = sorted(range(RATIOS), key=lambda index: error(index, ROWS))
        return candidate(min(sorted({0, *ranked[:FINALISTS]}), key=error))


def _error(reader: Reader, scale: Tensor, upper: Tensor, rows: int | None) -> float:
    """Return ``tr(D H Dᵀ)`` with ``D = Q(W s)/s − W``, all of it or estimated from some rows.

    Strip by strip with one triangle of the symmetric H, which halves the products.

    Args:
        reader: Weight W (out, in) and its Q.
        scale: s (in,).
        upper: (in, in), the upper triangle of H, its diagonal halved.
        rows: Evenly spaced rows that are looked at, at least; ``None`` is all.
    """
    step = max(1, len(reader.weight) // rows) if rows else 1
    rounded = reader.rounded(reader.weight * scale, None)
    change = (rounded[::step] / scale).sub_(reader.weight[::step])
    total = 0.0
    for start in range(0, len(scale), STRIP):
        strip = slice(start, start + STRIP)
        seen = change[:, : strip.stop] @ upper[: strip.stop, strip]
        total += 2 * float(seen.mul_(change[:, strip]).sum())
    return step * total
