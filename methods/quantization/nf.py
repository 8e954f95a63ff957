"""NormalFloat: levels at quantiles of a normal distribution, magnitudes quantized as well."""

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.normal_float import NormalFloat

BITS = (2, 3, 4)
BLOCK = 64


@dataclass(frozen=True, slots=True)
class NfSpec:
    """NormalFloat: ``nf-w4`` is NF4 with double quantization, as QLoRA has it.

    Token: ``nf-w<bits>[b<block>][-single]``, without a block of 64.

    Args:
        bits: Bits a code: 2, 3 or 4.
        block: Consecutive weights, row by row, that share a magnitude.
        single: Magnitudes are float32, not quantized.
    """

    method: ClassVar[str] = "nf"
    slot: ClassVar[str] = "quantizer"

    bits: int
    block: int = BLOCK
    single: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.bits not in BITS or self.block < 1:
            raise PlanError(
                f"nf: bits must be one of {BITS} and the block positive, got {self.bits} bits and "
                f"a block of {self.block}."
            )

    def token(self) -> str:
        """Return the canonical token."""
        block = "" if self.block == BLOCK else f"b{self.block}"
        return f"nf-w{self.bits}{block}{'-single' if self.single else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"nf-w(\d+)(?:b(\d+))?(-single)?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected nf-w<bits>[b<block>][-single], such as nf-w4."
            )
        return cls(int(found[1]), int(found[2] or BLOCK), bool(found[3]))


class Nf:
    """``w ≈ m · t[q]`` with m the largest |w| of a block and t the levels of the format.

    A block is so many consecutive weights of the (out, in) matrix, row by row; for the levels see
    :func:`autocomp.formats.normal_float.normal_levels`. Unless ``single``, the mean of all m is
    taken off and the rest stored in 8 bits a block, with the largest of every 256 in float32:
    ``bits + 8/64 + 32/(64·256)`` bits a weight.

    Reference:
        Dettmers et al. 2023, QLoRA, https://arxiv.org/abs/2305.14314
    """

    scope: ClassVar[Scope] = "site"
    spec: ClassVar[type[NfSpec]] = NfSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "levels at quantiles of a normal distribution, no calibration"
    reference: ClassVar[str] = "https://arxiv.org/abs/2305.14314"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})
    formats: ClassVar[tuple[str, ...]] = ("normal_float",)

    def layout(self, spec: NfSpec, shape: tuple[int, int], dtype: str = "") -> NormalFloat:
        """Return the layout of a weight (out, in); ``dtype`` plays no part."""
        return NormalFloat(shape, spec.bits, spec.block, not spec.single)

    def compress(
        self, weight: Tensor, spec: NfSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return the nearest levels; ``weight`` is (out, in), fp32; nothing else is read."""
        return self.layout(spec, (weight.shape[0], weight.shape[1])).quantize(weight)
