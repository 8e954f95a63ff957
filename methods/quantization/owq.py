"""OWQ: the columns that rounding would hurt most stay in float16, the others are GPTQ's."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import UniformSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.columns import Columns
from autocomp.formats.sum import Sum
from autocomp.formats.uniform import Uniform
from autocomp.methods._column_solver import ColumnFactor, solve_columns
from autocomp.methods._hessian import require
from autocomp.methods._masks import drop_smallest
from autocomp.methods._uniform import AffineGrid, UniformMethod

FULL_BITS = 16


@dataclass(frozen=True, slots=True)
class OwqSpec(UniformSpec):
    """OWQ at an average of 3.1 bits: ``owq-w3-t3.1``, ``owq-w3g128-mse-t3.01``.

    Token: ``owq-w<bits>[g<group>][-sym][-mse|-clip]-t<average bits>``.

    Args:
        target: Average bits of a weight, scales and zero points aside, in [bits, 16].
    """

    method: ClassVar[str] = "owq"

    target: float = FULL_BITS

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            PlanError: If the average is out of reach.
        """
        UniformSpec.__post_init__(self)
        if not self.bits <= self.target <= FULL_BITS:
            raise PlanError(
                f"owq: the average lies between {self.bits} and {FULL_BITS} bits, got "
                f"{self.target:g}."
            )

    def columns(self, in_features: int) -> int:
        """Return how many columns stay: ``in (t − b)/(16 − b)``, rounded, then to an even number.

        The official code counts this way; a column has its codes too, hence 16 bits more.
        """
        share = (self.target - self.bits) / (FULL_BITS - self.bits)
        count = round(in_features * share)
        return min(in_features, count + count % 2)

    def token(self) -> str:
        """Return the canonical token."""
        return f"{UniformSpec.token(self)}-t{self.target:g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"(.+)-t(\d+(?:\.\d+)?)", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected owq-w<bits>[g<group>][-sym][-mse|-clip]"
                "-t<average bits>, such as owq-w3-t3.1."
            )
        return replace(super(OwqSpec, cls).parse(found[1]), target=float(found[2]))


class Owq(UniformMethod):
    """The columns with the largest ``H_jj ‖W_j − Q(W)_j‖²`` keep float16; GPTQ rounds the others.

    Q rounds W (out, in) to nearest on grids of the whole weight. The final grids are those of the
    other columns alone, which are visited by decreasing ``diag H``; their errors move into the
    kept columns too, whose *updated* values are stored. As the spec fixes the average bits, the
    count of kept columns and with it the size follow from the shape.

    The official code shares an average out between the linears of a block, three eighths as much
    to those of the MLP; here every site has its own.

    Reference:
        Lee et al. 2023, OWQ, https://arxiv.org/abs/2306.02272
    """

    spec: ClassVar[type[OwqSpec]] = OwqSpec
    version: ClassVar[int] = 1
    usual: ClassVar[str] = "owq-{grid}-t{bits}.05"
    summary: ClassVar[str] = "second-order rounding, the most sensitive columns in float16"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.02272"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.HESSIAN})
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})
    formats: ClassVar[tuple[str, ...]] = ("uniform", "sum")

    def layout(  # type: ignore[override]
        self, spec: OwqSpec, shape: tuple[int, int], dtype: str = ""
    ) -> Uniform | Sum:
        """Return the layout of a weight (out, in): with kept columns a sum.

        Raises:
            PlanError: If the group size does not divide the inputs.
        """
        base, count = UniformMethod.layout(self, spec, shape), spec.columns(shape[1])
        return Sum(shape, base, Columns(shape, count)) if count else base

    def compress(
        self, weight: Tensor, spec: OwqSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed codes and kept columns; ``weight`` is (out, in), fp32; ``dtype`` unused.

        Raises:
            PlanError: If the Hessian is missing or the group size does not divide the inputs.
            NumericalError: If H cannot be factorised.
        """
        shape = weight.shape[0], weight.shape[1]
        layout, inner = self.layout(spec, shape), UniformMethod.layout(self, spec, shape)
        hessian = require(stats, "hessian", "owq", shape[1])
        weak = weak_columns(weight, hessian, self.grid(weight, spec, stats), spec)
        grid = self.grid(weight.masked_fill(weak, 0.0), spec, stats)
        factor = ColumnFactor.of(hessian, act_order=True, last=weak)
        solved = solve_columns(weight, factor, grid=grid, spare=weak.expand_as(weight))
        assert solved.codes is not None
        if not isinstance(layout, Sum):
            return inner.pack(solved.codes, grid.scale, grid.zero)
        nothing = grid.zero.repeat_interleave(shape[1] // grid.zero.shape[1], dim=1)
        codes = torch.where(weak, nothing, solved.codes)
        base = inner.pack(codes, grid.scale, grid.zero)
        kept = Columns(shape, spec.columns(shape[1])).pack(weak, solved.weight)
        return layout.pack(base, kept)


def weak_columns(weight: Tensor, hessian: Tensor, grid: AffineGrid, spec: OwqSpec) -> Tensor:
    """Return which columns of a weight (out, in) stay, (in,) bool."""
    lost = (grid.nearest(weight) - weight).square().sum(dim=0)
    score, count = lost * hessian.diagonal().to(lost), spec.columns(weight.shape[1])
    return drop_smallest(score[None], len(score) - count)[0]
