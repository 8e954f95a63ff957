"""How far to believe the best plan of a study, and what that took: in data and in words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from autocomp.core.metric import paired_name, short_name


class Curse(Protocol):
    """The winner's curse of the best searched plan."""

    @property
    def tied(self) -> int:
        """Plans that cannot be told from it, itself included."""

    @property
    def compared(self) -> int:
        """Plans that were measured to the top rung."""

    @property
    def optimism(self) -> float:
        """By how much its searched loss is too low for having been chosen."""


class Agreement(Protocol):
    """How far the orders of searched and of finished losses agree."""

    @property
    def spearman(self) -> float:
        """Spearman's ρ."""

    @property
    def kendall(self) -> float:
        """Kendall's τ."""

    @property
    def pairs(self) -> int:
        """Plans that have both losses."""


@dataclass(frozen=True)
class Conclusion:
    """What choosing the best of many is worth.

    Args:
        curse: Of the best searched plan; ``None`` before any was measured.
        finalists: Finished plans, best first: ``trial``, and ``difference``, ``low``, ``high`` and
            ``tied`` of the paired held-out comparison to the first.
        agreement: Rank correlation of searched and finished loss; ``None`` below three plans.
        tokens: Tokens read, by what for.
    """

    curse: Curse | None = None
    finalists: tuple[Mapping[str, Any], ...] = ()
    agreement: Agreement | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        curse, ranks = ("tied", "compared", "optimism"), ("spearman", "kendall", "pairs")
        return {
            "winners_curse": self.curse and {name: getattr(self.curse, name) for name in curse},
            "finalists": [dict(row) for row in self.finalists],
            "rank_correlation": self.agreement
            and {name: getattr(self.agreement, name) for name in ranks},
            "tokens": dict(self.tokens),
        }

    def lines(self, metric: str) -> list[str]:
        """Return it in words.

        Args:
            metric: Name of the loss.
        """
        found, name, paired = [], short_name(metric), paired_name(metric)
        if self.curse is not None:
            found.append(
                f"{self.curse.tied} of {self.curse.compared} measured plans are tied with the "
                f"best searched one; choosing it flatters its {paired} by "
                f"{self.curse.optimism:.3g}"
            )
        for row in self.finalists[1:]:
            verdict = "tied" if row["tied"] else "worse"
            found.append(
                f"trial {row['trial']} against trial {self.finalists[0]['trial']}, held-out "
                f"{paired}: {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], "
                f"{verdict}"
            )
        if self.agreement is not None:
            found.append(
                f"rank correlation of searched and finished {name} over {self.agreement.pairs} "
                f"plans: Spearman {self.agreement.spearman:.2f}, Kendall "
                f"{self.agreement.kendall:.2f}"
            )
        if any(self.tokens.values()):
            parts = (f"{what} {count:,}" for what, count in self.tokens.items())
            found.append(f"tokens read: {', '.join(parts)}")
        return found
