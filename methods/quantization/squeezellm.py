"""SqueezeLLM: a few values a row, found by k-means that counts errors by what they cost."""

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
from autocomp.formats.codebook import Codebook
from autocomp.formats.outliers import Outliers
from autocomp.formats.sum import Sum
from autocomp.methods._hessian import require
from autocomp.methods._kmeans import kmeans

BITS = (2, 3, 4)
SENSITIVE_SHARE = 0.05 / 0.45


@dataclass(frozen=True, slots=True)
class SqueezeLlmSpec:
    """A codebook a row: ``squeezellm-w3``, and some exact weights: ``squeezellm-w3-o0.45``.

    Token: ``squeezellm-w<bits>[-o<percent of weights stored exactly>]``.

    Args:
        bits: Bits a code: 2, 3 or 4.
        percent: Share of the weights that are stored in float16 beside, in percent.
    """

    method: ClassVar[str] = "squeezellm"
    slot: ClassVar[str] = "quantizer"

    bits: int
    percent: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.bits not in BITS or not 0 <= self.percent < 100:
            raise PlanError(
                f"squeezellm: bits must be one of {BITS} and the percentage lie in [0, 100), got "
                f"{self.bits} bits and {self.percent:g} %."
            )

    def token(self) -> str:
        """Return the canonical token."""
        sparse = f"-o{self.percent:g}" if self.percent else ""
        return f"squeezellm-w{self.bits}{sparse}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"squeezellm-w(\d+)(?:-o(\d+(?:\.\d+)?))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected squeezellm-w<bits>[-o<percent>], such as "
                "squeezellm-w3 or squeezellm-w3-o0.45."
            )
        return cls(int(found[1]), float(found[2] or 0))


class SqueezeLlm:
    """``min Σ_j F_ij (w_ij − c_i[q_ij])²`` for each row i of (out, in), ``F = E[(g_i x_j)²]``.

    F is the diagonal of the Fisher matrix of the weight, from the gradients of the dense model;
    the best centroids are found exactly (:mod:`autocomp.methods._kmeans`). Given a percentage,
    ``⌊percent · out · in / 100⌋`` weights are stored exactly: one of nine is among those with the
    largest F, the others are the largest of the rest, which is what a threshold on outliers of
    the matrix chooses, by count. They take no part in the clustering; their code is the centroid
    nearest to 0, and the rest ``w − c`` is stored.

    The original squares the gradient of each sequence where this squares that of each token.

    Reference:
        Kim et al. 2023, SqueezeLLM, https://arxiv.org/abs/2306.07629
    """

    scope: ClassVar[Scope] = "site"
    spec: ClassVar[type[SqueezeLlmSpec]] = SqueezeLlmSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a codebook a row by k-means that weighs errors by the Fisher matrix"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.07629"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.SENSITIVITY})
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})
    formats: ClassVar[tuple[str, ...]] = ("codebook", "sum")

    def layout(
        self, spec: SqueezeLlmSpec, shape: tuple[int, int], dtype: str = ""
    ) -> Codebook | Sum:
        """Return the layout of a weight (out, in); ``dtype`` plays no part."""
        book, count = Codebook(shape, spec.bits), _exact_count(spec, shape)
        return Sum(shape, book, Outliers(shape, count)) if spec.percent else book

    def compress(
        self, weight: Tensor, spec: SqueezeLlmSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed codes; ``weight`` is (out, in), fp32.

        Raises:
            PlanError: If the sensitivity is missing or belongs to a weight of another shape.
        """
        shape = weight.shape[0], weight.shape[1]
        fisher = require(stats, "sensitivity", "squeezellm", shape[1])
        if fisher.shape != weight.shape:
            raise PlanError(
                f"squeezellm: the sensitivity is of a weight of shape {tuple(fisher.shape)}, "
                f"this one has {shape}."
            )
        exact = exact_mask(weight, fisher, _exact_count(spec, shape))
        book = Codebook(shape, spec.bits)
        centroids = kmeans(weight, fisher.masked_fill(exact, 0.0), 1 << spec.bits).half()
        codes = book.codes(weight.masked_fill(exact, 0.0), centroids)
        base = book.pack(codes, centroids)
        if not spec.percent:
            return base
        sparse = Outliers(shape, int(exact.sum()))
        rest = sparse.pack(exact, weight - base.to_dense())
        return Sum(shape, book, sparse).pack(base, rest)


def _exact_count(spec: SqueezeLlmSpec, shape: tuple[int, int]) -> int:
    """Return how many weights are stored exactly."""
    return int(spec.percent / 100 * shape[0] * shape[1])


def exact_mask(weight: Tensor, fisher: Tensor, count: int) -> Tensor:
    """Return which weights are stored exactly, (out, in) bool.

    Args:
        weight: (out, in).
        fisher: (out, in), not negative.
        count: How many; one of nine by F, then by size; of equal ones the first.
    """
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    sensitive = int(count * SENSITIVE_SHARE)
    mask[fisher.flatten().argsort(descending=True, stable=True)[:sensitive]] = True
    sizes = weight.abs().flatten().masked_fill(mask, -1.0)
    mask[sizes.argsort(descending=True, stable=True)[: count - sensitive]] = True
    return mask.view(weight.shape)
