"""HQQ: zero points that make most weights fit and let a few outliers err, without data."""

import math
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
from autocomp.formats.affine import Affine
from autocomp.formats.base import CompressedWeight

STEPS = 20
NORM = 0.7
PENALTY = 10.0
PENALTY_GROWTH = 1.01
LARGEST_INVERSE_SCALE = 2e4


@dataclass(frozen=True, slots=True)
class HqqSpec:
    """Half-quadratic quantization: ``hqq-w4g64``.

    Token: ``hqq-w<bits>[g<group>]``.

    Args:
        bits: Bits a code, one of 2, 3, 4, 5, 6, 8.
        group_size: Consecutive inputs of one row that share a scale; ``None`` is the whole row.
    """

    method: ClassVar[str] = "hqq"
    slot: ClassVar[str] = "quantizer"

    bits: int
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.bits not in BITS or (self.group_size is not None and self.group_size < 1):
            raise PlanError(
                f"hqq: bits must be one of {BITS} and the group size positive, got {self.bits} "
                f"bits and a group size of {self.group_size}."
            )

    def token(self) -> str:
        """Return the canonical token."""
        return f"hqq-w{self.bits}" + ("" if self.group_size is None else f"g{self.group_size}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"hqq-w(\d+)(?:g(\d+))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected hqq-w<bits>[g<group>], such as hqq-w4g64."
            )
        return cls(int(found[1]), int(found[2]) if found[2] else None)


class Hqq:
    """``min_z,e ‖e‖_p^p + β/2 ‖w − s(q − z) − e‖²`` with p = 0.7, alternating between e and z.

    The scale is that of round to nearest, ``(max − min)/(2^b − 1)`` of a group of a row of the
    (out, in) weight, without zero forced in. With ``r = w − s(q − z)``, a step takes
    ``e = sign(r)·max(0, |r| − |r|^(p−1)/β)`` and ``z = mean(q − (w − e)/s)``; β grows from 10 by
    1 % a step. There are 20 steps, or fewer when the mean of |r| over the whole matrix no longer
    falls; the z with the least one is taken, where the authors' code takes the last. z is real
    and stored so; at 4 bits it starts at a whole number.

    Reference:
        Badri and Shaji 2023, Half-Quadratic Quantization, https://mobiusml.github.io/hqq_blog/
    """

    scope: ClassVar[Scope] = "site"
    spec: ClassVar[type[HqqSpec]] = HqqSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "zero points by a half-quadratic solver, no calibration"
    reference: ClassVar[str] = "https://mobiusml.github.io/hqq_blog/"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})
    formats: ClassVar[tuple[str, ...]] = ("affine",)

    def layout(self, spec: HqqSpec, shape: tuple[int, int], dtype: str = "") -> Affine:
        """Return the layout of a weight (out, in); ``dtype`` plays no part.

        Raises:
            PlanError: If the group size does not divide the inputs.
        """
        return Affine(shape, spec.bits, spec.group_size)

    def passes(self, spec: HqqSpec) -> int:
        """Return how many times the solver goes over the weight at most."""
        return STEPS

    def compress(
        self, weight: Tensor, spec: HqqSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed codes; ``weight`` is (out, in), fp32; nothing else is read."""
        layout = self.layout(spec, (weight.shape[0], weight.shape[1]))
        groups = weight.reshape(len(weight), -1, spec.group_size or weight.shape[1])
        low, high = groups.aminmax(dim=2, keepdim=True)
        span = torch.where(high == low, 2**spec.bits - 1.0, high - low)
        inverse = ((2**spec.bits - 1) / span).clamp(max=LARGEST_INVERSE_SCALE)
        zero = -low * inverse
        if spec.bits == 4:
            zero = zero.round()
        zero = _solved(groups, inverse, zero, spec.bits)
        scale = 1 / inverse
        sides = {"scale": scale[..., 0].half(), "zero": zero[..., 0].half()}
        return layout.pack(layout.codes(weight, sides), sides["scale"], sides["zero"])


def _solved(groups: Tensor, inverse: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return the best zero points (out, groups, 1) that the steps come by.

    Args:
        groups: (out, groups, size) fp32.
        inverse: (out, groups, 1), one over the scale.
        zero: (out, groups, 1), where they start.
        bits: Bits a code.
    """
    penalty, least, best = PENALTY, math.inf, zero
    for _ in range(STEPS):
        codes = (groups * inverse + zero).round_().clamp_(0, 2**bits - 1)
        rest = groups - (codes - zero) / inverse
        error = float(rest.abs().mean())
        if error >= least:
            break
        least, best = error, zero
        size = rest.abs()
        kept = rest.sign() * (size - size.pow(NORM - 1) / penalty).clamp_(min=0)
        zero = (codes - (groups - kept) * inverse).mean(dim=2, keepdim=True)
        penalty *= PENALTY_GROWTH
    return best
