"""LLM.int8(): round the input of a linear to 8 bits, except for what exceeds a threshold."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Reader, Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats
from autocomp.formats.round_regular import RoundRegular


@dataclass(frozen=True, slots=True)
class LlmInt8Spec:
    """Keep outlying inputs of a linear, round the others: ``llmint8``, ``llmint8-t4``.

    Token: ``llmint8[-t<threshold>]``.

    Args:
        threshold: Magnitude from which on an input is an outlier, a positive whole number; 6 is
            not written.
    """

    method: ClassVar[str] = "llmint8"
    slot: ClassVar[str] = "activation"

    threshold: int = 6

    def __post_init__(self) -> None:
        """Check the threshold."""
        if self.threshold < 1:
            raise PlanError(f"llmint8: the threshold must be positive, got {self.threshold}.")

    def token(self) -> str:
        """Return the canonical token."""
        return "llmint8" if self.threshold == 6 else f"llmint8-t{self.threshold}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"llmint8(?:-t(\d+))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected llmint8[-t<threshold>], such as llmint8-t4."
            )
        return cls(int(found[1] or 6))


class LlmInt8:
    """``x̂_j = x_j`` where ``|x_j| ≥ τ``, else ``t · round(x_j / t)``, ``t = absmax / 127``.

    The absmax is that of the token's inputs below τ. It pays beside 8-bit weights with one scale
    a row, ``rtn-w8-sym+llmint8``: regular inputs are then multiplied in integers and outlying ones
    by the same decoded weights, so no column of the weight (out, in) is stored twice.

    The paper keeps a feature exact for all tokens of a batch if one of them is outlying there.
    Here every token is on its own, as in decoding; what it is rounded to, and so every
    measurement, does not depend on the batch.

    Reference:
        Dettmers et al. 2022, LLM.int8(), https://arxiv.org/abs/2208.07339
    """

    scope: ClassVar[Scope] = "input"
    spec: ClassVar[type[LlmInt8Spec]] = LlmInt8Spec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "round the input of a linear to 8 bits, outliers stay as they are"
    reference: ClassVar[str] = "https://arxiv.org/abs/2208.07339"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def step(self, spec: LlmInt8Spec, in_features: int) -> RoundRegular:
        """Return the step, which stores nothing."""
        return RoundRegular(in_features, float(spec.threshold))

    def fit(
        self, readers: Sequence[Reader], spec: LlmInt8Spec, stats: Stats | None
    ) -> dict[str, Tensor]:
        """Return no tensors."""
        return {}
