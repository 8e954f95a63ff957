"""Shuffle: inputs dealt to the patterns of an N:M mask so that good weights do not compete."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from autocomp.core.errors import PlanError, UnsupportedError
from autocomp.core.method import Reader, Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import InputSpec, LayerSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.steps import Permutation
from autocomp.methods._joint import method_of

BLOCK = 256
SWEEPS = 3
CHUNK_ROWS = 32
"""Rows at a time, so that what is compared stays in a cache."""
PASSES = 60


@dataclass(frozen=True, slots=True)
class ShuffleSpec(InputSpec):
    """Deal the inputs to patterns: ``shuffle+esparse-2:4``, ``shuffle-global+wanda-2:4``.

    Token: ``shuffle[-global|-b<block>]``.

    Args:
        block: Inputs within which the second step exchanges; 256 is not written, and 0, written
            ``global``, leaves that step out.
    """

    method: ClassVar[str] = "shuffle"

    block: int = BLOCK

    def token(self) -> str:
        """Return the canonical token."""
        block = {BLOCK: "", 0: "-global"}.get(self.block, f"-b{self.block}")
        return f"shuffle{block}{'-folded' if self.folded else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"shuffle(?:-(global)|-b([1-9]\d*))?(-folded)?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected shuffle[-global|-b<block>], such as shuffle-b128."
            )
        return cls(folded=bool(found[3]), block=0 if found[1] else int(found[2] or BLOCK))


class Shuffle:
    """``y = W[:, p] x[p]`` with an order p, (in,), that raises what an N:M mask retains.

    The score is that of the mask beside it, and what is retained the sum of the scores that the
    mask keeps. First, *globally*, inputs are sorted by their mean score and dealt like cards: of
    G patterns number g gets the ranks g, g + G, g + 2G, …, so that the best inputs do not share
    one. Then, within *blocks* of patterns, one place of every pattern at a time is emptied and
    filled again by the assignment of its inputs to patterns that retains most, in three sweeps
    over all places, between which pattern g turns by g places: with t the ``keep``-th largest
    score among the others of a pattern in a row, an input of score c adds ``max(0, c − t)``.

    The paper has no public code and leaves open how its local step exchanges channels. The order
    is stored, two bytes an input, whatever the mask, and it is each linear's own. A finish folds
    that of an MLP's last linear into the rows in front, where that is exact (``layers.fold_order``
    says why elsewhere it is not).

    Reference:
        Li et al. 2023, E-Sparse: Boosting the Large Language Model Inference through Entropy-based
        N:M Sparsity, https://arxiv.org/abs/2310.15929
    """

    scope: ClassVar[Scope] = "input"
    spec: ClassVar[type[ShuffleSpec]] = ShuffleSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "deal the inputs to the patterns of an N:M mask"
    reference: ClassVar[str] = "https://arxiv.org/abs/2310.15929"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def check_layer(self, spec: LayerSpec) -> None:
        """Refuse what has no patterns to deal to.

        Raises:
            UnsupportedError: If there is no N:M mask beside it.
        """
        if spec.mask is None or spec.mask.m is None:
            raise UnsupportedError(
                f"{spec.token()}: shuffle deals inputs to the patterns of an N:M mask, such as "
                "shuffle+wanda-2:4."
            )

    def step(self, spec: ShuffleSpec, in_features: int) -> Permutation:
        """Return the stored step: the order."""
        return Permutation(in_features)

    def passes(self, spec: ShuffleSpec) -> int:
        """Return how many times the exchange goes over the weight, as measured."""
        return PASSES if spec.block else 0

    def fit(
        self, readers: Sequence[Reader], spec: ShuffleSpec, stats: Stats | None
    ) -> dict[str, Tensor]:
        """Return ``order`` (in,), int16 or int32.

        Raises:
            PlanError: If a statistic is missing that the mask needs.
        """
        patterns = [Pattern.of(reader, stats) for reader in readers]
        width = readers[0].weight.shape[1]
        m = max(pattern.m for pattern in patterns)
        order = deal(torch.cat([pattern.score for pattern in patterns]).mean(dim=0), m)
        for start in range(0, width, step := max(1, spec.block // m) * m) if spec.block else ():
            part = order[start : start + step].view(-1, m)
            order[start : start + step] = exchange(patterns, part).flatten()
        wide = self.step(spec, width).tensors()["order"].dtype == "int32"
        return {"order": order.to(torch.int32 if wide else torch.int16)}


class Pattern(NamedTuple):
    """What a mask goes by.

    Args:
        score: (out, in) fp32.
        keep: Weights kept of every ``m``.
        m: Pattern length.
    """

    score: Tensor
    keep: int
    m: int

    @classmethod
    def of(cls, reader: Reader, stats: Stats | None) -> Self:
        """Return the pattern of a reader's mask."""
        mask = reader.spec.mask
        return cls(method_of(mask).score(reader.weight, mask, stats), mask.keep, mask.m)

    def threshold(self, others: Tensor) -> Tensor:
        """Return what a score has to exceed beside others of its pattern.

        Args:
            others: (patterns, n) int64, the inputs of each.

        Returns:
            (out, patterns), the ``keep``-th largest score; 0 where all can stay.
        """
        keep = self.keep * (others.shape[1] + 1) // self.m
        scores = self.score[:, others]
        if keep > others.shape[1]:
            return scores.new_zeros(scores.shape[:2])
        return scores.kthvalue(others.shape[1] + 1 - keep, dim=2).values

    def gains(self, members: Tensor, others: Tensor) -> Tensor:
        """Return what each input adds to each pattern, (patterns, members) fp64.

        Args:
            members: (members,) int64 inputs.
            others: (patterns, n) int64, what the patterns hold already.
        """
        found = torch.zeros((len(others), len(members)), dtype=torch.float64)
        threshold, score = self.threshold(others), self.score[:, members]
        for rows in range(0, len(score), CHUNK_ROWS):
            part = slice(rows, rows + CHUNK_ROWS)
            added = score[part, None, :] - threshold[part, :, None]
            found += added.clamp_min_(0).sum(dim=0).double().cpu()
        return found


def deal(score: Tensor, m: int) -> Tensor:
    """Return inputs (in,) by falling score (in,), dealt to ``in / m`` patterns; leftmost first."""
    ranks = torch.sort(score, descending=True, stable=True).indices
    return ranks.view(m, -1).T.flatten()


def exchange(patterns: Sequence[Pattern], inputs: Tensor) -> Tensor:
    """Return inputs (patterns, m) exchanged between patterns; what is retained does not fall.

    Args:
        patterns: What the masks of all readers go by.
        inputs: (patterns, m) int64, the inputs of each pattern of a block.
    """
    found = inputs.clone()
    size, places = found.shape
    turned = (torch.arange(places) + torch.arange(size)[:, None]).remainder(places)
    turned = turned.to(found.device)
    for _ in range(SWEEPS):
        for place in range(places):
            others = found[:, torch.arange(places) != place]
            members = found[:, place]
            gains = torch.stack([p.gains(members, others) for p in patterns]).sum(dim=0)
            _, chosen = linear_sum_assignment(gains.numpy(), maximize=True)
            picked = torch.from_numpy(chosen)
            new = gains.gather(1, picked[:, None]).sum()
            if bool(new > gains.diagonal().sum() * (1 + 1e-9)):
                found[:, place] = members[picked.to(members.device)]
        found = found.gather(1, turned)
    return found
