"""Low-rank compensation: two small factors beside a compressed weight, for what it lost."""

from dataclasses import dataclass
from typing import ClassVar

from autocomp.core.spec import FactorSpec
from autocomp.core.stats import Needs
from autocomp.methods._residual import ResidualMethod, ResidualSpec


@dataclass(frozen=True, slots=True)
class LorcSpec(ResidualSpec):
    """Low-rank compensation: ``lorc-r16``, ``lorc-p5``, ``lorc-r16-w8`` with 8-bit factors."""

    method: ClassVar[str] = "lorc"

    @property
    def factor(self) -> str:
        """The whitened SVD of the error."""
        return "wsvd" + FactorSpec.token(self).removeprefix(self.method)


class Lorc(ResidualMethod):
    """``W ≈ Ŵ + A B`` with the least ``tr((E − A B) H (E − A B)ᵀ)`` of a rank, ``E = W − Ŵ``.

    That is the whitened SVD of the error (out, in) in place of the plain one of the paper, so it
    corrects outputs; it is also the closed form of QERA, https://arxiv.org/abs/2410.06040.
    Rounded factors are rounded as a factor and a quantizer together are: B with feedback under H,
    then A after it is refitted to the rounded B.

    Reference:
        Yao et al. 2023, ZeroQuant-V2 (LoRC), https://arxiv.org/abs/2303.08302
    """

    spec: ClassVar[type[LorcSpec]] = LorcSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "low-rank factors for what the other slots lost"
    reference: ClassVar[str] = "https://arxiv.org/abs/2303.08302"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.HESSIAN})
