"""QuIP: rounding of an incoherent weight on one narrow grid, with feedback and greedy passes."""

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import BITS
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.midrise import Midrise
from autocomp.formats.steps import ROTATIONS, Rotation
from autocomp.formats.turned import Turned
from autocomp.methods._column_solver import DAMPING, ColumnFactor, solve_columns
from autocomp.methods._hessian import require
from autocomp.methods._uniform import AffineGrid

RANGE = 2.4
OUTPUT_SEED = 1
"""Seed of the rotation of the output side; that of the input has another."""
SMALLEST_SCALE = 2.0**-24  # the least positive float16


@dataclass(frozen=True, slots=True)
class QuipSpec:
    """QuIP's rounding: ``quip-w2``; a greedy pass and turned outputs: ``quip-w2-p1-hadamard``.

    Token: ``quip-w<bits>[-p<greedy passes>][-<hadamard|orthogonal|full>]``.

    Args:
        bits: Bits a code, one of 2, 3, 4, 5, 6, 8.
        passes: How many times every code is looked at once more.
        turn: The rotation of the output side; empty leaves it as it is.
    """

    method: ClassVar[str] = "quip"
    slot: ClassVar[str] = "quantizer"

    bits: int
    passes: int = 0
    turn: str = ""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            PlanError: If the bits are none of those.
        """
        if self.bits not in BITS:
            raise PlanError(f"quip: bits must be one of {BITS}, got {self.bits}.")

    def token(self) -> str:
        """Return the canonical token."""
        passes = f"-p{self.passes}" if self.passes else ""
        return f"{self.method}-w{self.bits}{passes}{f'-{self.turn}' if self.turn else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        kinds = "|".join(ROTATIONS)
        found = re.fullmatch(rf"quip-w(\d+)(?:-p([1-9]\d*))?(?:-({kinds}))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected quip-w<bits>[-p<greedy passes>][-<{kinds}>], "
                "such as quip-w2."
            )
        return cls(int(found[1]), int(found[2] or 0), found[3] or "")


class Quip:
    """LDLQ in act-order on a grid of ``± 2.4 · RMS(w)`` a row, for a weight behind a rotation.

    A rotation of the input (``rotation`` in the input slot, ``rotation-hadamard+quip-w2``) leaves
    no large weights, so that a grid may be narrow: ``ŵ = s (q − (2^b − 1)/2)`` with
    ``s = 2 · 2.4 · RMS/(2^b − 1)``, codes clamped. LDLQ rounds a column with the feedback
    ``Σ_j (w − ŵ)_j L_ji`` of the columns before it, ``H = L D Lᵀ``: what the column solver does.
    A greedy pass then goes through all columns in that order once more and rounds each,
    ``ŵ_i ← round(ŵ_i − ((ŵ − w) H)_i / H_ii)``, so that ``tr((ŵ − w) H (ŵ − w)ᵀ)`` never rises.

    The whole of the paper is ``rotation-orthogonal-rescaled+quip-w2-p1-orthogonal``: the input is
    rescaled and turned, and the output side of the weight (out, in) is turned too, ``U W``, whose
    rows are alike and have one scale. At run time the outputs are turned back, ``y = Uᵀ (Ŵ' x)``;
    U follows from its seed. Without that a row has a scale of its own, which takes 16 bits and
    saves a product.

    Reference:
        Chee et al. 2023, QuIP, https://arxiv.org/abs/2307.13304
    """

    scope: ClassVar[Scope] = "site"
    spec: ClassVar[type[QuipSpec]] = QuipSpec
    version: ClassVar[int] = 1
    usual: ClassVar[str] = "rotation-orthogonal-rescaled+quip-w{bits}-p1-orthogonal"
    summary: ClassVar[str] = "feedback rounding of a rotated weight on one narrow grid"
    reference: ClassVar[str] = "https://arxiv.org/abs/2307.13304"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.HESSIAN})
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})
    formats: ClassVar[tuple[str, ...]] = ("midrise", "turned")

    def layout(self, spec: QuipSpec, shape: tuple[int, int], dtype: str = "") -> Midrise | Turned:
        """Return the layout of a weight (out, in); ``dtype`` plays no part."""
        inner = self._inner(spec, shape)
        if not spec.turn:
            return inner
        return Turned(shape, inner, Rotation(shape[0], spec.turn, OUTPUT_SEED))

    @staticmethod
    def _inner(spec: QuipSpec, shape: tuple[int, int]) -> Midrise:
        """Return the layout of the codes."""
        return Midrise(shape, spec.bits, single=bool(spec.turn))

    def grid(self, weight: Tensor, spec: QuipSpec, stats: Stats | None = None) -> AffineGrid:
        """Return scale (out, 1) float16 and the zero point between the two middle codes."""
        size = weight.square().mean(dim=1, keepdim=True).sqrt()
        if spec.turn:
            size = size.square().mean().sqrt().expand_as(size)
        levels = 2**spec.bits - 1
        scale = (2 * RANGE / levels * size).clamp_min(SMALLEST_SCALE).to(torch.float16)
        return AffineGrid(scale, torch.full_like(size, levels / 2), spec.bits)

    def compress(
        self, weight: Tensor, spec: QuipSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed codes; ``weight`` is (out, in), fp32; ``dtype`` is not used.

        Raises:
            PlanError: If the Hessian is missing.
            NumericalError: If H cannot be factorised.
        """
        layout = self.layout(spec, (weight.shape[0], weight.shape[1]))
        if isinstance(layout, Midrise):
            return self._rounded(weight, spec, stats, layout)
        inner = self._inner(spec, layout.shape)
        return layout.pack(self._rounded(layout.turn(weight), spec, stats, inner))

    def _rounded(
        self, weight: Tensor, spec: QuipSpec, stats: Stats | None, layout: Midrise
    ) -> CompressedWeight:
        """Return packed codes of a weight (out, in) as it is stored."""
        factor = ColumnFactor.shared(stats, True, "quip", weight.shape[1])
        grid = self.grid(weight, spec, stats)
        codes = solve_columns(weight, factor, grid=grid).codes
        assert codes is not None
        if spec.passes:
            hessian = require(stats, "hessian", "quip")
            codes = improved(weight, codes, grid, (hessian, factor.order), spec.passes)
        return layout.pack(codes, grid.scale)


def improved(
    weight: Tensor,
    codes: Tensor,
    grid: AffineGrid,
    moments: tuple[Tensor, Tensor],
    passes: int,
) -> Tensor:
    """Return codes after greedy passes, each code the best while the others stay.

    Args:
        weight: (out, in).
        codes: (out, in) uint8.
        grid: One group a row.
        moments: H (in, in) and the order in which columns are visited, (in,).
        passes: How many.
    """
    hessian, order = moments
    damped = hessian.to(weight, copy=True)
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    scale, zero = (side[:, 0].to(weight) for side in (grid.scale, grid.zero))
    found = codes.T.to(weight).contiguous()
    change = scale * (found - zero) - weight.T
    for _ in range(passes):
        before = found.clone()
        for column in order.tolist():
            gradient = damped[column] @ change / damped[column, column]
            best = (found[column] - gradient / scale).round_().clamp_(0, grid.levels)
            change[column] += scale * (best - found[column])
            found[column] = best
        if torch.equal(before, found):
            break
    return found.T.to(torch.uint8).contiguous()
