"""Which measured plans are finished, and when finished results ask for more of them.

Finishing changes plans unequally: it takes more off a plan whose loss comes from coarse options.
So the order of searched losses is not that of finished ones, and what the search cannot tell apart
should be finished side by side.

1. *First*: the plan with the lowest searched loss; then, of those that are tied with it on the
   search text (a paired interval that holds 0), again and again the one that differs most from
   those chosen; then the next-best. The same at smaller budgets of the ladder, when asked.
2. *More*: as long as a finished plan beats the one with the lowest searched loss on held-out text,
   by a paired interval, the other plans are ranked anew by what they would finish at,

       log(finished / searched) = Σ_class share(class) · β(class) + noise,

   with share(class) the part of the plan's corrected score that options of a class have, and β
   fitted to the finished plans under normal priors: one wide effect that all classes share, and
   narrow ones of their own. The lowest is finished next, unless one that is finished is lower.

All of it is a function of the trials and of finished results, so a finish that was killed goes on
where it was: what is there is read, not made again.

Reference: Gonzalez 1985, https://doi.org/10.1016/0304-3975(85)90224-5 (farthest-first choice);
Rasmussen and Williams 2006, section 2.1 (the linear model), https://gaussianprocess.org/gpml/
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autocomp.config import SearchConfig
from autocomp.core.metric import positive
from autocomp.evaluate.intervals import paired
from autocomp.search.context import SearchContext
from autocomp.search.correction import Correction
from autocomp.search.knapsack import Floats
from autocomp.search.records import FinishedRecord, TrialRecord
from autocomp.search.samplers.outlook import best_within, correction_of

COMMON, OWN, NOISE = 1.0, 0.3, 0.05
"""Prior standard deviations of the shared and of each class's own effect on log(finished /
searched), and what held-out text and chance add to it."""

UNIFORMS = 2
"""Uniform plans that are finished in the same way, to compare with."""

Finish = Callable[[TrialRecord], FinishedRecord]
"""Makes the artefact of a trial and measures it, or returns what is there."""


def best_first(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return measured trials by searched loss."""
    return sorted(records, key=lambda record: (_searched(record), record.logical))


def _searched(record: TrialRecord) -> float:
    return math.inf if record.loss is None else record.loss


def diverse(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Return plans to finish: the best, then different ones tied with it, then the next-best.

    Args:
        records: Trials measured to the top rung.
        count: How many; fewer where there are not as many.
    """
    best, *others = best_first(records)
    tied = [record for record in others if _tied(record, best)]
    chosen = [best]
    while tied and len(chosen) < count:
        far = max(tied, key=lambda record: min(_distance(record, other) for other in chosen))
        chosen.append(far)
        tied.remove(far)
    rest = [record for record in others if record not in chosen]
    return [*chosen, *rest[: count - len(chosen)]]


def _tied(one: TrialRecord, other: TrialRecord) -> bool:
    """Return whether an interval of the difference on the search text exists and holds 0."""
    if min(len(one.unit_loss), len(other.unit_loss)) < 2:
        return False
    return paired(one.unit_loss, other.unit_loss).tied


def _distance(one: TrialRecord, other: TrialRecord) -> int:
    """Return how many decisions differ."""
    names = one.params.keys() | other.params.keys()
    return sum(one.params.get(name) != other.params.get(name) for name in names)


@dataclass(frozen=True, eq=False)
class FinishModel:
    """What finishing does to a plan's loss, by the classes that its loss comes from.

    Args:
        classes: Names.
        mode: β of each class, shape (classes,).
    """

    classes: tuple[str, ...]
    mode: Floats

    @classmethod
    def fit(
        cls,
        shares: Sequence[Mapping[str, float]],
        log_ratios: Sequence[float],
        others: Sequence[Mapping[str, float]] = (),
    ) -> "FinishModel":
        """Return the posterior mean of β.

        Args:
            shares: Share of each class in the loss of every finished plan, each summing to 1.
            log_ratios: log(finished / searched) of each.
            others: Shares of the plans to predict, for classes that no finished plan has; these
                get the shared effect.
        """
        classes = tuple(sorted({name for share in (*shares, *others) for name in share}))
        table = np.array([[share.get(name, 0.0) for name in classes] for share in shares])
        prior = COMMON**2 + OWN**2 * np.eye(len(classes))
        covariance = table @ prior @ table.T + NOISE**2 * np.eye(len(table))
        gain = prior @ table.T @ np.linalg.inv(covariance)
        return cls(classes, gain @ np.asarray(log_ratios, dtype=float))

    def log_ratio(self, share: Mapping[str, float]) -> float:
        """Return the expected log(finished / searched) of a plan."""
        return float(self.mode @ [share.get(name, 0.0) for name in self.classes])


def contradicted(records: Sequence[TrialRecord], finished: Mapping[int, FinishedRecord]) -> bool:
    """Return whether a finished plan beats the finished one that the search likes best.

    Args:
        records: Trials at one budget.
        finished: Plainly finished artefacts by trial number.
    """
    done = [record for record in best_first(records) if record.number in finished]
    if not done:
        return False
    favourite = finished[done[0].number].unit_loss
    return any(
        paired(finished[record.number].unit_loss, favourite).high < 0 for record in done[1:]
    )


def next_finalist(
    records: Sequence[TrialRecord],
    finished: Mapping[int, FinishedRecord],
    shares: Callable[[TrialRecord], Mapping[str, float]],
) -> tuple[TrialRecord, float] | None:
    """Return the plan that is likely to finish best, and its expected finished loss.

    Args:
        records: Trials at one budget.
        finished: Plainly finished artefacts by trial number.
        shares: Share of each class of option in a plan's loss.

    Returns:
        ``None`` when finished results agree with the search, or no other plan is expected to beat
        the best finished one.
    """
    if not contradicted(records, finished):
        return None
    done = [record for record in records if record.number in finished]
    open_ = [record for record in best_first(records) if record.number not in finished]
    known, unknown = [shares(r) for r in done], [shares(r) for r in open_]
    losses = {record.number: finished[record.number].heldout_loss for record in done}
    ratios = [math.log(positive(losses[r.number]) / positive(_searched(r))) for r in done]
    model = FinishModel.fit(known, ratios, unknown)
    expected = [
        positive(_searched(record)) * math.exp(model.log_ratio(share))
        for record, share in zip(open_, unknown, strict=True)
    ]
    if not expected or min(expected) >= min(losses.values()):
        return None
    place = int(np.argmin(expected))
    return open_[place], expected[place]


@dataclass(frozen=True)
class Finalists:
    """The plans of a study that are finished.

    Args:
        records: Trials within the limits that were measured to the top rung, at least one.
        contexts: What each variant's proposals are made from, the first one's first.
        effort: How many.
    """

    records: Sequence[TrialRecord]
    contexts: Sequence[SearchContext]
    effort: SearchConfig

    @cached_property
    def pools(self) -> list[list[TrialRecord]]:
        """The trials that each budget allows, largest first; budgets without a trial left out."""
        pools = [list(self.records)]
        for budget in self.contexts[0].budgets[1 : self.effort.finish_budgets]:
            spent = ((r, self._context(r).exact_bytes(r.plan)) for r in self.records)
            pools.append([record for record, size in spent if size <= budget])
        return [pool for pool in pools if pool]

    @cached_property
    def first(self) -> list[TrialRecord]:
        """The plans that are finished whatever comes of it, by variant and number."""
        uniform = best_first([r for r in self.records if r.origin == "uniform"])
        chosen = {r.number: r for r in uniform[: min(UNIFORMS, self.effort.finalists)]}
        for pool in self.pools:
            chosen |= {record.number: record for record in diverse(pool, self.effort.finalists)}
        return sorted(chosen.values(), key=lambda r: (self._context(r).variant, r.number))

    def finish(self, finish: Finish) -> Iterator[tuple[TrialRecord, float]]:
        """Finish the first plans, then more where finished results contradict the search.

        Args:
            finish: Called once for every plan, whether it is there already or not.

        Yields:
            Each further plan before it is finished, with the finished loss expected of it.
        """
        done = {record.number: finish(record) for record in self.first}
        for pool in self.pools:
            for _ in range(self.effort.more_finalists):
                found = next_finalist(pool, done, self.shares)
                if found is None:
                    break
                yield found
                done[found[0].number] = finish(found[0])

    def shares(self, record: TrialRecord) -> dict[str, float]:
        """Return the share of each class of option in a plan's loss, as the search knows it."""
        context = self._context(record)
        return self._corrections[context.variant].class_shares(*context.decisions(record.params))

    @cached_property
    def _corrections(self) -> dict[int, Correction]:
        first, *others = self.contexts
        best = best_within(first, self.records, first.budget_bytes)
        found = {first.variant: correction_of(first, self.records, best)}
        for context in others:
            prior = found[first.variant]
            found[context.variant] = correction_of(context, self.records, prior=prior)
        return found

    def _context(self, record: TrialRecord) -> SearchContext:
        return next(context for context in self.contexts if context.owns(record.params))
