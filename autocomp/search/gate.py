"""Where a candidate stops climbing: a measured plan that costs no more is better beyond doubt."""

from collections.abc import Sequence
from dataclasses import dataclass

from autocomp.evaluate.intervals import SpreadPrior
from autocomp.evaluate.ladder import clearly_worse
from autocomp.search.records import TrialRecord


@dataclass(frozen=True)
class Gate:
    """What a candidate has to keep up with.

    Args:
        rival: Loss of each unit of the best plan that costs no more.
        total: Units of the top rung.
        prior: How much the study's plans usually differ from unit to unit.
    """

    rival: tuple[float, ...]
    total: int
    prior: SpreadPrior | None

    @classmethod
    def of(cls, told: Sequence[TrialRecord], cost: float, total: int) -> "Gate | None":
        """Return the gate of a candidate; ``None`` where no plan that costs no more was measured.

        Args:
            told: Trials that were proposed before it.
            cost: Cost of the candidate, the one that the study minimises.
            total: Units of the top rung.
        """
        full = [record for record in told if record.state == "COMPLETE"]
        rivals = [record for record in full if record.cost <= cost]
        best = min(rivals, key=lambda record: (record.loss, record.logical), default=None)
        if best is None:
            return None
        prior = SpreadPrior.fit([record.unit_loss for record in full])
        return cls(best.unit_loss, total, prior)

    def stops(self, losses: Sequence[float]) -> bool:
        """Return whether a candidate with these losses, the first of its units, is given up."""
        return clearly_worse(losses, self.rival, total=self.total, prior=self.prior)
