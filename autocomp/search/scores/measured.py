"""One site at a time, measured: what the study's objective loses on its first rung.

``loss(dense but for one option of one site) − loss(dense)``, at least 0, in the unit of the
objective: nats a token for the KL. It is exact for one site, so no second order is left out, but
it costs an assembled model an option. Sites come in model order, and the evaluator goes on from
hidden states that are equal, so what lies late is cheap.

All kinds of options are measured alike. The pairs are those of the Kronecker score.

Reference: Cai et al. 2020, https://arxiv.org/abs/2001.00281 (sensitivity of a layer as the KL when
it alone is quantized).
"""

from dataclasses import replace
from typing import ClassVar

from autocomp.core.spec import DENSE
from autocomp.search.scores.base import Lists, Loss, ScoreNeeds
from autocomp.search.scores.kronecker import Kronecker
from autocomp.search.scores.table import ScoreTable


class Measured(Kronecker):
    """The loss of the assembled model with one option of one site."""

    summary: ClassVar[str] = "loss of the assembled model with one option of one site alone"
    reference: ClassVar[str] = "https://arxiv.org/abs/2001.00281"
    needs: ClassVar[frozenset[ScoreNeeds]] = frozenset({ScoreNeeds.OBJECTIVE})

    def revised(self, table: ScoreTable, lists: Lists, loss: Loss) -> ScoreTable:
        """Return the losses that were measured; a sub-block's is that of its bypass."""
        values = {
            site: {s.token(): 0.0 if s == DENSE else max(0.0, loss(site, s)) for s in specs}
            for site, specs in lists.items()
        }
        drop = {site: max(values.pop(site).values()) for site in table.drop if site in values}
        return replace(table, options=values, drop=drop)
