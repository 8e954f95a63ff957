"""LPLR: two quantized factors, the first a random sketch, the second fitted to it as stored."""

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import BITS, FactorSpec, UniformSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.factors import Factors
from autocomp.formats.uniform import Uniform
from autocomp.formats.uniform_tensor import UniformTensor
from autocomp.methods._joint import factor_group
from autocomp.methods._uniform import AffineGrid

Side = Uniform | UniformTensor


@dataclass(frozen=True, slots=True)
class LplrSpec(FactorSpec):
    """Quantized factors of a sketch: ``lplr-r64-w8``, ``lplr-p50-w4w8g32``, ``lplr-p80-w8t-q2``.

    Token: ``lplr-<r|p><rank or percent>-w<bits>[w<bits>][g<group>|t][-q<steps>][-s<seed>]``.

    Args:
        bits: Bits of the left factor (out, k).
        right_bits: Bits of the right factor (k, in).
        group_size: Consecutive entries of a factor's row that share a scale, at most; ``None`` is
            the whole row.
        per_tensor: One scale and zero point a factor, as in the paper.
        power: Power steps that turn the sketch towards the largest singular values.
        seed: Seed of the draw; 0, which is not written, is the default.
    """

    method: ClassVar[str] = "lplr"

    bits: int = 8
    right_bits: int = 8
    group_size: int | None = None
    per_tensor: bool = False
    power: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        FactorSpec.__post_init__(self)
        if not {self.bits, self.right_bits} <= set(BITS):
            raise PlanError(
                f"lplr: bits must be of {BITS}, got {self.bits} and {self.right_bits}."
            )
        if self.group_size is not None and (self.group_size < 1 or self.per_tensor):
            raise PlanError("lplr: a scale is that of a group of at least 1, or of the factor.")

    def token(self) -> str:
        """Return the canonical token."""
        second = "" if self.right_bits == self.bits else f"w{self.right_bits}"
        shared = f"g{self.group_size}" if self.group_size else "t" if self.per_tensor else ""
        power, seed = (
            f"-{letter}{value}" if value else ""
            for letter, value in (("q", self.power), ("s", self.seed))
        )
        return f"{FactorSpec.token(self)}-w{self.bits}{second}{shared}{power}{seed}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(
            r"lplr-(?:r(\d+)|p(\d[\d.]*))-w(\d)(?:w(\d))?(?:g(\d+)|(t))?(?:-q(\d))?(?:-s(\d+))?",
            text,
        )
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected lplr-r<rank>-w<bits> or lplr-p<percent of "
                "parameters>-w<bits>, then [w<bits of the second>][g<group>|t][-q<steps>]"
                "[-s<seed>], such as lplr-p50-w8."
            )
        rank, percent, left, right, group, per_tensor, power, seed = found.groups()
        return cls(
            rank=int(rank) if rank else None,
            keep_percent=float(percent) if percent else None,
            bits=int(left),
            right_bits=int(right or left),
            group_size=int(group) if group else None,
            per_tensor=bool(per_tensor),
            power=int(power or 0),
            seed=int(seed or 0),
        )


class Lplr:
    """``L = Q(W S)``, ``R = Q(L⁺ W)``: the second factor corrects what the first was rounded by.

    S (in, k) is Gaussian of variance 1/k, so that all columns of the sketch are alike and round
    on one grid. With q power steps it is a randomly turned orthonormal basis of what
    ``(Wᵀ W)^q`` makes of such a draw: ``W S`` then spans what the paper's ``(W Wᵀ)^q W S`` does,
    better conditioned. Q rounds to nearest on asymmetric grids that hold zero, of a row, of a
    group or of the whole factor.

    The same is done from the other side, ``R = Q(Sᵀ W)``, ``L = Q(W R⁺)``, and what is nearer to
    the weight (out, in) is kept. Draws depend on the seed, the shape and the rank alone.

    The published code adds a scale and a shift of the product at the end: the scale is part of the
    factors' own, and the shift has no place in a product.

    Reference:
        Saha, Srivastava and Pilanci 2023, Matrix Compression via Randomized Low Rank and Low
        Precision Factorization, https://arxiv.org/abs/2310.11028
    """

    scope: ClassVar[Scope] = "site"
    spec: ClassVar[type[LplrSpec]] = LplrSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "quantized low-rank factors of a random sketch, no calibration"
    reference: ClassVar[str] = "https://arxiv.org/abs/2310.11028"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})
    formats: ClassVar[tuple[str, ...]] = ("factors",)

    def layout(self, spec: LplrSpec, shape: tuple[int, int], dtype: str = "") -> Factors:
        """Return the layout from the shape (out, in) alone; ``dtype`` plays no part."""
        left, right = _sides(spec, shape)
        return Factors(shape, right.shape[0], left, right)

    def compress(
        self, weight: Tensor, spec: LplrSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return both factors, rounded; ``weight`` is (out, in), fp32, ``stats`` is not used."""
        packed = self.layout(spec, (weight.shape[0], weight.shape[1]))
        outer, inner = _sides(spec, packed.shape)
        seeds = SeedTree(spec.seed).child("lplr", *packed.shape, packed.rank)

        def drawn(side: str, matrix: Tensor) -> Tensor:
            generator = Generator().manual_seed(seeds.child(side).seed)
            return sketch(matrix, packed.rank, spec.power, generator)

        left = _round(drawn("left", weight), outer)
        right = _round(second_factor(left.to_dense(), weight), inner)
        found = packed.pack(left, right)
        right = _round(drawn("right", weight.T).T, inner)
        left = _round(second_factor(right.to_dense().T, weight.T).T, outer)
        other = packed.pack(left, right)
        return min(found, other, key=lambda product: float((product.to_dense() - weight).norm()))


def sketch(matrix: Tensor, rank: int, power: int, generator: Generator) -> Tensor:
    """Return ``W S``, (out, k), whose columns span about the largest k singular directions.

    Args:
        matrix: W (out, in).
        rank: k, at most min(out, in).
        power: Power steps q; each multiplies what the singular values count by their square.
        generator: Where S comes from: Gaussian of variance 1/k, or with power steps a randomly
            turned orthonormal basis.

    Returns:
        (out, k) fp32.
    """

    def gaussian(rows: int) -> Tensor:
        return torch.randn(rows, rank, generator=generator, dtype=torch.float64)

    wide = matrix.double()
    chosen = gaussian(wide.shape[1]) / math.sqrt(rank)
    for _ in range(power):
        chosen = torch.linalg.qr(wide.T @ (wide @ chosen)).Q
    if power:
        chosen = chosen @ torch.linalg.qr(gaussian(rank)).Q
    return (wide @ chosen).float()


def second_factor(left: Tensor, matrix: Tensor) -> Tensor:
    """Return the ``R = L⁺ W`` (k, in) fp32 with the least ``‖L R − W‖_F`` for L (out, k)."""
    wide = left.double()
    inverse = torch.linalg.pinv(wide.T @ wide, hermitian=True)
    return (inverse @ (wide.T @ matrix.double())).float()


def _sides(spec: LplrSpec, shape: tuple[int, int]) -> tuple[Side, Side]:
    """Return the layouts of the left and the right factor of a weight (out, in)."""
    rank = spec.rank_for(shape)

    def side(bits: int, shape: tuple[int, int]) -> Side:
        if spec.per_tensor:
            return UniformTensor(shape, bits)
        return Uniform(shape, bits, factor_group(spec.group_size, shape[1]))

    return side(spec.bits, (shape[0], rank)), side(spec.right_bits, (rank, shape[1]))


def _round(factor: Tensor, layout: Side) -> CompressedWeight:
    """Round a factor to nearest on the grid that spans its rows, its groups or all of it."""
    if isinstance(layout, UniformTensor):
        flat = factor.reshape(1, -1)
        grid = AffineGrid.fit(flat, UniformSpec(layout.bits))
        return layout.pack(grid.codes(flat).view(layout.shape), grid.scale, grid.zero)
    grid = AffineGrid.fit(factor, UniformSpec(layout.bits, layout.group_size))
    return layout.pack(grid.codes(factor), grid.scale, grid.zero)
