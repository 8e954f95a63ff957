"""Bypass: leave an attention or MLP sub-block out, so that only the residual stream passes."""

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.bypass import Bypass


@dataclass(frozen=True, slots=True)
class BypassSpec:
    """The sub-block is left out; the token is ``bypass``."""

    method: ClassVar[str] = "bypass"
    slot: ClassVar[str] = "structure"

    def token(self) -> str:
        """Return ``bypass``."""
        return self.method

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec; there is only one.

        Raises:
            PlanError: If the token is not ``bypass``.
        """
        if text != cls.method:
            raise PlanError(f"cannot read {text!r}: bypass takes no options.")
        return cls()


class BypassSubblock:
    """``x + f(x)`` becomes ``x``: zero bytes, no weights, no cache.

    Reference:
        He et al. 2024, What Matters in Transformers? Not All Attention is Needed,
        https://arxiv.org/abs/2406.15786
    """

    scope: ClassVar[Scope] = "site"
    formats: ClassVar[tuple[str, ...]] = ("bypass",)
    spec: ClassVar[type[BypassSpec]] = BypassSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "leave an attention or MLP sub-block out"
    reference: ClassVar[str] = "https://arxiv.org/abs/2406.15786"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"subblock"})

    def layout(self, spec: BypassSpec, shape: tuple[int, int], dtype: str) -> Bypass:
        """Return the empty layout."""
        return Bypass(shape)

    def compress(
        self, weight: Tensor, spec: BypassSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return the empty weight; ``weight`` is (out, in), or (0, 0) for a sub-block."""
        return Bypass((weight.shape[0], weight.shape[1])).pack()
