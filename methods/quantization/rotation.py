"""Random rotation of the input: spreads outlying weights so that they round like the others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Reader, Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats
from autocomp.formats.steps import ROTATIONS
from autocomp.formats.steps import Rotation as RotationStep


@dataclass(frozen=True, slots=True)
class RotationSpec:
    """A random rotation: ``rotation-hadamard``, ``rotation-orthogonal-s7``.

    Token: ``rotation-<hadamard|orthogonal|full>[-s<seed>]``.

    Args:
        kind: ``hadamard``, ``orthogonal`` (a Kronecker product) or ``full`` (one matrix).
        seed: Seed of the draw; 0, which is not written, is the default.
    """

    method: ClassVar[str] = "rotation"
    slot: ClassVar[str] = "input"

    kind: str
    seed: int = 0

    def token(self) -> str:
        """Return the canonical token."""
        return f"rotation-{self.kind}{f'-s{self.seed}' if self.seed else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(rf"rotation-({'|'.join(ROTATIONS)})(?:-s(\d+))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected rotation-<{'|'.join(ROTATIONS)}>[-s<seed>], such "
                "as rotation-hadamard."
            )
        return cls(found[1], int(found[2] or 0))


class Rotation:
    """``y = (W Tᵀ)(T x)`` with a random orthogonal T that is a product of small matrices.

    The incoherence processing of QuIP on the input side of W (out, in): every channel of T x is a
    mixture of all channels of x, so neither ``W Tᵀ`` nor ``T x`` has outlying columns, and
    ``tr(D H Dᵀ)`` of a change D stays what it was. The output side stays as it is, since turning
    it back would be one more product a linear, and so does the diagonal rescaling in front. T is
    applied at run time and stored as its seed, in the plan; it cannot be folded.

    Reference:
        Chee et al. 2023, QuIP, https://arxiv.org/abs/2307.13304
    """

    scope: ClassVar[Scope] = "input"
    spec: ClassVar[type[RotationSpec]] = RotationSpec
    version: ClassVar[int] = 1
    usual: ClassVar[str] = "rotation-hadamard+gptq-{grid}"
    summary: ClassVar[str] = "turn the input by a random rotation, stored as a seed"
    reference: ClassVar[str] = "https://arxiv.org/abs/2307.13304"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def step(self, spec: RotationSpec, in_features: int) -> RotationStep:
        """Return the stored step, which has no tensors."""
        return RotationStep(in_features, spec.kind, spec.seed)

    def fit(
        self, readers: Sequence[Reader], spec: RotationSpec, stats: Stats | None
    ) -> dict[str, Tensor]:
        """Return nothing: the rotation follows from its seed."""
        return {}
