"""Act-order: inputs sorted by how much they matter, so that groups hold equals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.method import Reader, Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import InputSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.steps import Permutation
from autocomp.methods._hessian import require


@dataclass(frozen=True, slots=True)
class ActOrderSpec(InputSpec):
    """Sort the inputs: ``actorder``, as in ``actorder+gptq-w3g64``."""

    method: ClassVar[str] = "actorder"


class ActOrder:
    """``y = W[:, p] x[p]`` with p by decreasing ``E[x²]``.

    What GPTQ's act-order does to groups: those that matter alike share a grid, so that the grids
    of the inputs that matter most are not stretched by others. Elsewhere that needs the index of
    the group of every input, ``g_idx``; here it is the order p itself, (in,), stored once, and
    the weight (out, in) behind it may be made by any other method.

    Reference:
        Frantar et al. 2022, GPTQ, https://arxiv.org/abs/2210.17323
    """

    scope: ClassVar[Scope] = "input"
    spec: ClassVar[type[ActOrderSpec]] = ActOrderSpec
    version: ClassVar[int] = 1
    usual: ClassVar[str] = "actorder+gptq-{grid}"
    summary: ClassVar[str] = "sort the inputs by their size, so that groups hold equals"
    reference: ClassVar[str] = "https://arxiv.org/abs/2210.17323"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.NORMS})
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def step(self, spec: ActOrderSpec, in_features: int) -> Permutation:
        """Return the stored step: the order."""
        return Permutation(in_features)

    def fit(
        self, readers: Sequence[Reader], spec: ActOrderSpec, stats: Stats | None
    ) -> dict[str, Tensor]:
        """Return ``order`` (in,), int16 or int32.

        Raises:
            PlanError: If the norms of the input are missing.
        """
        width = readers[0].weight.shape[1]
        norms = require(stats, "norms", "actorder", width)
        order = torch.sort(norms, descending=True, stable=True).indices
        wide = self.step(spec, width).tensors()["order"].dtype == "int32"
        return {"order": order.to(torch.int32 if wide else torch.int16)}
