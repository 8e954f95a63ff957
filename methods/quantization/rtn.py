"""Round to nearest: the baseline quantizer, without calibration."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.sketch import SiteKind
from autocomp.core.spec import UniformSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.methods._uniform import UniformMethod


@dataclass(frozen=True, slots=True)
class RtnSpec(UniformSpec):
    """Round to nearest on a uniform grid: ``rtn-w4g64``, ``rtn-w8-sym``, ``rtn-w3g128-mse``."""

    method: ClassVar[str] = "rtn"


class Rtn(UniformMethod):
    """``q = clamp(round(w/s) + z, 0, 2^b − 1)``, rounding half to even.

    Every weight (out, in) moves by at most s/2, unless ``mse`` clips it: then the range of each
    group shrinks by the factor of 1, 0.99, …, 0.21 with the least ``Σ|w − ŵ|^2.4``; or ``clip``
    cuts it at the ``±max·(1 − i/20)``, i < 10, with the least error of the group's output.

    Reference:
        Frantar et al. 2022, GPTQ (its round-to-nearest preset), https://arxiv.org/abs/2210.17323
    """

    spec: ClassVar[type[RtnSpec]] = RtnSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "round to nearest on a uniform grid, no calibration"
    reference: ClassVar[str] = "https://arxiv.org/abs/2210.17323"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})

    def compress(
        self, weight: Tensor, spec: RtnSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed codes; ``weight`` is (out, in), fp32; ``stats`` only serves ``clip``.

        Raises:
            PlanError: If ``clip`` lacks the Hessian.
        """
        layout = self.layout(spec, (weight.shape[0], weight.shape[1]))
        grid = self.grid(weight, spec, stats)
        return layout.pack(grid.codes(weight), grid.scale, grid.zero)
