"""Random rotation of the input: spreads outlying weights so that they round like the others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Reader, Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats
from autocomp.formats.steps import ROTATIONS, ScaledRotation
from autocomp.formats.steps import Rotation as RotationStep
from autocomp.methods._hessian import require

SMALLEST = 1e-12
LARGEST_SCALE = 1024.0


@dataclass(frozen=True, slots=True)
class RotationSpec:
    """A random rotation: ``rotation-hadamard``, ``rotation-orthogonal-s7-rescaled``.

    Token: ``rotation-<hadamard|orthogonal|full>[-s<seed>][-rescaled]``.

    Args:
        kind: ``hadamard``, ``orthogonal`` (a Kronecker product) or ``full`` (one matrix).
        seed: Seed of the draw; 0, which is not written, is the default.
        rescaled: Every channel is divided by a number first.
    """

    method: ClassVar[str] = "rotation"
    slot: ClassVar[str] = "input"

    kind: str
    seed: int = 0
    rescaled: bool = False

    def token(self) -> str:
        """Return the canonical token."""
        seed = f"-s{self.seed}" if self.seed else ""
        return f"rotation-{self.kind}{seed}{'-rescaled' if self.rescaled else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        pattern = rf"rotation-({'|'.join(ROTATIONS)})(?:-s(\d+))?(-rescaled)?"
        found = re.fullmatch(pattern, text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected rotation-<{'|'.join(ROTATIONS)}>[-s<seed>]"
                "[-rescaled], such as rotation-hadamard."
            )
        return cls(found[1], int(found[2] or 0), bool(found[3]))


class Rotation:
    """``y = (W Tᵀ)(T x)`` with a random orthogonal T that is a product of small matrices.

    The incoherence processing of QuIP on the input side of W (out, in): every channel of T x is a
    mixture of all channels of x, so neither ``W Tᵀ`` nor ``T x`` has outlying columns, and
    ``tr(D H Dᵀ)`` of a change D stays what it was. T is applied at run time and stored as its
    seed, in the plan; it cannot be folded. ``rescaled`` divides x by s first, stored as float16,
    which evens out what is large in the input with what is large in the weight:
    ``s_j = (H_jj / ‖W_:j‖²)^(1/4)``, over its median, W all rows that read x. What turns the
    output side is an option of ``quip``.

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

    def needs_of(self, spec: RotationSpec) -> frozenset[Needs]:
        """Return what rescaling needs."""
        return frozenset({Needs.NORMS}) if spec.rescaled else frozenset()

    def step(self, spec: RotationSpec, in_features: int) -> RotationStep:
        """Return the stored step, which has no tensors but the scale."""
        kind = ScaledRotation if spec.rescaled else RotationStep
        return kind(in_features, spec.kind, spec.seed)

    def fit(
        self, readers: Sequence[Reader], spec: RotationSpec, stats: Stats | None
    ) -> dict[str, Tensor]:
        """Return ``scale`` (in,) float16 if rescaled: the rotation follows from its seed.

        Raises:
            PlanError: If the norms of the input are missing.
        """
        if not spec.rescaled:
            return {}
        weight = torch.cat([reader.weight for reader in readers])
        norms = require(stats, "norms", "rotation", weight.shape[1])
        ratio = norms.clamp_min(SMALLEST) / weight.norm(dim=0).clamp_min(SMALLEST)
        scale = ratio.sqrt()
        scale = (scale / scale.median()).clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
        return {"scale": scale.to(torch.float16)}
