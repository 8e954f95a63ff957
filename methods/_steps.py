"""What input methods share: statistics and errors behind a step, and steps that scale channels."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.method import Reader, Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats
from autocomp.formats.steps import Scale, Step

SMALLEST_SCALE = 1e-5
LARGEST_SCALE = torch.finfo(torch.float16).max

MIXED = {
    Needs.NORMS: Needs.HESSIAN,
    Needs.ABSMEAN: Needs.SAMPLE,
    Needs.ABSMAX: Needs.SAMPLE,
}
"""What a statistic is worked out from behind a step that mixes channels."""


def needs_behind(step: Step | None, needs: frozenset[Needs]) -> frozenset[Needs]:
    """Return the statistics of x that give these statistics of ``T x``."""
    if step is None or step.diagonal:
        return needs
    return frozenset(MIXED.get(need, need) for need in needs)


def stepped(stats: Stats | None, step: Step, tensors: Mapping[str, Tensor]) -> Stats | None:
    """Return the statistics of ``T x``, given those of x.

    ``H' = T H Tᵀ``. Largest and mean magnitudes follow exactly from those of x where T is
    diagonal, and are those of the sample elsewhere. The sensitivity of the weights ``W T⁻¹`` is
    known only where T is diagonal. The last result of each kind of step is kept
    in ``stats.derived``, and with it the factorisations that are kept there in turn.

    Args:
        stats: Statistics of x, (in,) and (in, in).
        step: A linear step.
        tensors: Its tensors.
    """
    if stats is None:
        return None
    key = f"stepped/{step.to_json()}"
    kept: tuple[Mapping[str, Tensor], Stats] | None = stats.derived.get(key)
    if kept is None or any(bool((kept[0][name] != t).any()) for name, t in tensors.items()):
        kept = stats.derived[key] = (dict(tensors), _stepped(stats, step, tensors))
    return kept[1]


def _stepped(stats: Stats, step: Step, tensors: Mapping[str, Tensor]) -> Stats:
    def turn(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else step.apply(rows, tensors)

    sample, hessian = turn(stats.sample), turn(stats.hessian)
    if hessian is not None:
        hessian = step.apply(hessian.T.contiguous(), tensors)
        hessian = (hessian + hessian.T) / 2
    sensitivity = None
    if step.diagonal:
        root = turn(None if stats.sensitivity is None else stats.sensitivity.sqrt())
        sensitivity = None if root is None else root.square()
        norms, absmean, absmax = map(turn, (stats.norms, stats.absmean, stats.absmax))
    else:
        norms = None if hessian is None else hessian.diagonal().clamp_min(0).sqrt()
        absmean = None if sample is None else sample.abs().mean(dim=0)
        absmax = None if sample is None else sample.abs().amax(dim=0)
    return replace(
        stats,
        hessian=hessian,
        norms=norms,
        mean=turn(stats.mean),
        absmean=absmean,
        absmax=absmax,
        sample=sample,
        sensitivity=sensitivity,
        digest=f"{stats.digest}+{step.name}",
        derived={},
    )


def output_error(reader: Reader, step: Step, tensors: Mapping[str, Tensor], stats: Stats) -> float:
    """Return ``E‖Ŵ' a(T x) − W x‖²`` over the sample, weight and input rounded to nearest.

    Args:
        reader: Whose outputs they are.
        step: A linear step T.
        tensors: Its tensors.
        stats: Statistics of x, with ``sample`` (n, in).
    """
    inside = stepped(stats, step, tensors)
    assert stats.sample is not None
    assert inside is not None
    assert inside.sample is not None
    weight = reader.rounded(step.absorb(reader.weight, tensors), inside)
    outputs = reader.rounded_input(inside.sample, inside) @ weight.T
    return float((outputs - stats.sample @ reader.weight.T).square().sum(dim=1).mean())


class ScaleMethod(ABC):
    """What methods that divide each channel of the input by a number share."""

    scope: ClassVar[Scope] = "input"
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    @abstractmethod
    def scale(self, readers: Sequence[Reader], spec: Any, stats: Stats | None) -> Tensor:
        """Return ``s`` (in,) fp32, positive."""

    def step(self, spec: Any, in_features: int) -> Scale:
        """Return the stored step: one float16 a channel."""
        return Scale(in_features)

    def fit(self, readers: Sequence[Reader], spec: Any, stats: Stats | None) -> dict[str, Tensor]:
        """Return ``scale`` (in,) float16, kept within the range of that dtype.

        Args:
            readers: Linears that read the input, weights (out, in) fp32.
            spec: The method's spec.
            stats: Statistics of the input.

        Raises:
            PlanError: If a statistic is missing.
        """
        scale = self.scale(readers, spec, stats).clamp(SMALLEST_SCALE, LARGEST_SCALE)
        return {"scale": scale.to(torch.float16)}
