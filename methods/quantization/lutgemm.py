"""LUT-GEMM: weights as sums of scaled signs, found by alternating least squares."""

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.bcq import Bcq, signs
from autocomp.methods._hessian import require
from autocomp.methods._signs import ROUNDS, alternate

MOST_BITS = 5


@dataclass(frozen=True, slots=True)
class LutGemmSpec:
    """A sum of scaled signs: ``lutgemm-w3g128``, ``lutgemm-w2g64-offset``.

    Token: ``lutgemm-w<planes>[g<group>][-offset][-weighted]``.

    Args:
        bits: Planes of signs, 1 to 5.
        group_size: Consecutive inputs of one row that share scales; ``None`` is the whole row.
        offset: A number is added to each group.
        weighted: Squared errors count by the mean square of their input.
    """

    method: ClassVar[str] = "lutgemm"
    slot: ClassVar[str] = "quantizer"

    bits: int
    group_size: int | None = None
    offset: bool = False
    weighted: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        size = self.group_size
        if not 1 <= self.bits <= MOST_BITS or (size is not None and size < 1):
            raise PlanError(
                f"lutgemm: 1 to {MOST_BITS} planes and a positive group size, got {self.bits} "
                f"planes and a group size of {size}."
            )

    def token(self) -> str:
        """Return the canonical token."""
        group = "" if self.group_size is None else f"g{self.group_size}"
        flags = (("-offset", self.offset), ("-weighted", self.weighted))
        return f"lutgemm-w{self.bits}{group}" + "".join(text for text, flag in flags if flag)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"lutgemm-w(\d+)(?:g(\d+))?(-offset)?(-weighted)?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected lutgemm-w<planes>[g<group>][-offset][-weighted], "
                "such as lutgemm-w3g128."
            )
        bits, group, *flags = found.groups()
        return cls(int(bits), int(group) if group else None, *map(bool, flags))


class LutGemm:
    """``min Σ_j c_j (w_j − Σ_i α_i b_ij − o)²`` over signs b, scales α and an offset o a group.

    :mod:`autocomp.methods._signs` alternates between the scales and the signs. All c are 1, or
    ``E[x_j²]`` if the spec is ``weighted``. Scales of each group of a row of the (out, in) weight
    are rounded to float16 before the signs are chosen for the last time. The offset is optional,
    as without it the levels of a group are symmetric. A weight on a uniform grid is such a sum
    exactly: :meth:`autocomp.formats.bcq.Bcq.of_uniform`.

    Reference:
        Park et al. 2022, LUT-GEMM, https://arxiv.org/abs/2206.09557
    """

    scope: ClassVar[Scope] = "site"
    spec: ClassVar[type[LutGemmSpec]] = LutGemmSpec
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "sums of scaled signs by alternating least squares"
    reference: ClassVar[str] = "https://arxiv.org/abs/2206.09557"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})
    formats: ClassVar[tuple[str, ...]] = ("bcq",)

    def layout(self, spec: LutGemmSpec, shape: tuple[int, int], dtype: str = "") -> Bcq:
        """Return the layout of a weight (out, in); ``dtype`` plays no part.

        Raises:
            PlanError: If the group size does not divide the inputs.
        """
        return Bcq(shape, spec.bits, spec.group_size, "float16" if spec.offset else None)

    def passes(self, spec: LutGemmSpec) -> int:
        """Return how many times the solver goes over the weight, once a plane and round."""
        return ROUNDS * spec.bits

    def needs_of(self, spec: LutGemmSpec) -> frozenset[Needs]:
        """Return what weighting needs beside the method itself."""
        return frozenset({Needs.NORMS}) if spec.weighted else frozenset()

    def compress(
        self, weight: Tensor, spec: LutGemmSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed signs; ``weight`` is (out, in), fp32; ``stats`` only serves ``weighted``.

        Raises:
            PlanError: If the norms are missing or the group size does not divide the inputs.
        """
        rows, columns = weight.shape
        layout = self.layout(spec, (rows, columns))
        groups = weight.reshape(rows * layout.groups, -1)
        importance = torch.ones_like(groups)
        if spec.weighted:
            norms = require(stats, "norms", "lutgemm", columns)
            importance = norms.square().expand(rows, columns).reshape(groups.shape)
        scale, offset = alternate(groups, importance, signs(spec.bits, weight.device), spec.offset)
        sides = {"scale": scale.half().view(rows, layout.groups, spec.bits)}
        if spec.offset:
            sides["offset"] = offset.half().view(rows, layout.groups)
        return layout.pack(layout.nearest(weight, sides), **sides)
