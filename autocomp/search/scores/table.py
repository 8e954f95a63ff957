"""What a score says of every option of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Pairs = Mapping[str, Mapping[str, float]]
"""``K[o][p] = ½ tr(E_oᵀ G E_p H)`` of two options of a site by their tokens, nats a token."""


@dataclass(frozen=True)
class ScoreTable:
    """Predicted losses.

    Args:
        options: By site, by spec token.
        drop: By sub-block.
        pairs: By linear site, the second-order terms of its options' weight errors; symmetric.
            Moving from option c to option o bends the loss by ``K[o][o] + K[c][c] − 2 K[o][c]``.
            Options that round the input, whose change is none of a weight, are absent.
        score: Name of the score that ``options`` and ``drop`` are of.
        in_nats: Whether it predicts a KL, nats a token.
        tokens: Tokens that were read by assembled models, beside the calibration text.
        signals: By allocation, by linear site, what the allocation read in the pass.
    """

    options: Mapping[str, Mapping[str, float]]
    drop: Mapping[str, float]
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    score: str = "kronecker"
    in_nats: bool = True
    tokens: int = 0
    signals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, each site's pairs as a list of tokens and a matrix."""
        pairs = {
            site: {"tokens": list(rows), "matrix": [list(row.values()) for row in rows.values()]}
            for site, rows in self.pairs.items()
        }
        return {
            "score": self.score,
            "in_nats": self.in_nats,
            "tokens": self.tokens,
            "options": {site: dict(values) for site, values in self.options.items()},
            "drop": dict(self.drop),
            "pairs": pairs,
            "signals": {name: dict(values) for name, values in self.signals.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ScoreTable":
        """Return the table of its JSON form; one that an earlier version wrote has no pairs.

        Raises:
            KeyError: If options or sub-blocks are missing.
        """
        pairs = {
            site: {
                token: dict(zip(found["tokens"], row, strict=True))
                for token, row in zip(found["tokens"], found["matrix"], strict=True)
            }
            for site, found in data.get("pairs", {}).items()
        }
        later = ("score", "in_nats", "tokens", "signals")
        known = {name: data[name] for name in later if name in data}
        return cls(data["options"], data["drop"], pairs, **known)
