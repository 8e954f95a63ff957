"""Where a candidate stops climbing: a measured plan that is no larger is better beyond doubt."""

from collections.abc import Sequence
from dataclasses import dataclass

from autocomp.evaluate.intervals import SpreadPrior
from autocomp.evaluate.ladder import clearly_worse
from autocomp.search.records import TrialRecord


@dataclass(frozen=True)
class Gate:
    """What a candidate has to keep up with.

    Args:
        rival: Loss of each unit of the best plan that is no larger.
        total: Units of the top rung.
        prior: How much the study's plans usually differ from unit to unit.
    """

    rival: tuple[float, ...]
    total: int
    prior: SpreadPrior | None

    @classmethod
    def of(cls, told: Sequence[TrialRecord], weight_bytes: int, total: int) -> "Gate | None":
        """Return the gate of a candidate; ``None`` where no plan that is no larger was measured.

        Args:
            told: Trials that were proposed before it.
            weight_bytes: Size of the candidate.
            total: Units of the top rung.
        """
        full = [record for record in told if record.state == "COMPLETE"]
        rivals = [record for record in full if record.weight_bytes <= weight_bytes]
        best = min(rivals, key=lambda record: (record.loss, record.logical), default=None)
        if best is None:
            return None
        prior = SpreadPrior.fit([record.unit_loss for record in full])
        return cls(best.unit_loss, total, prior)

    def stops(self, losses: Sequence[float]) -> bool:
        """Return whether a candidate with these losses, the first of its units, is given up."""
        return clearly_worse(losses, self.rival, total=self.total, prior=self.prior)
