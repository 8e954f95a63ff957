"""From a layer spec to a compressed weight: which slots go together and which solver runs them.

The only door to the methods for the rest of autocomp. Methods are looked up in ``METHODS``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError, PlanError, UnsupportedError
from autocomp.core.registry import METHODS
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import SLOTS, LayerSpec, Spec, UniformSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.dense import Dense
from autocomp.formats.factors import Factors
from autocomp.formats.uniform import Grid
from autocomp.methods._column_solver import ColumnFactor, solve_columns
from autocomp.methods._hessian import cholesky, require

Shape = tuple[int, int]
REFIT_DAMPING = 1e-6


def layout(spec: LayerSpec, shape: Shape, dtype: str) -> Format:
    """Return the exact layout (tensors and bytes) of a site, from shapes alone.

    Args:
        spec: What is done to the site.
        shape: (out, in).
        dtype: Dtype of uncompressed values, ``float16`` or ``bfloat16``.

    Raises:
        PlanError: If the spec does not fit the shape.
        UnsupportedError: If the slots do not go together.
    """
    found: Format = _combination(spec).layout(spec, shape, dtype)
    return found


@torch.no_grad()
def compress(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    """Compress the weight of one site; deterministic, a function of its arguments alone.

    Args:
        weight: (out, in), not modified; computed with in fp32.
        spec: What is done to the site.
        stats: What :func:`needs` asks for; ``None`` if that is nothing.
        dtype: Dtype of uncompressed values, ``float16`` or ``bfloat16``.

    Raises:
        NumericalError: If the weight holds NaN or infinity, the result would, or H cannot be
            factorised.
        PlanError: If the spec does not fit the shape or a statistic is missing.
        UnsupportedError: If the slots do not go together.
    """
    if weight.dim() != 2:
        raise PlanError(f"a weight is a matrix (out, in), got shape {tuple(weight.shape)}.")
    combination = _combination(spec)
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise NumericalError(
            f"the weight holds NaN or infinity; {spec.token()} cannot compress it."
        )
    compressed: CompressedWeight = combination.compress(weight, spec, stats, dtype)
    for name, tensor in compressed.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericalError(
                f"{spec.token()}: {name} does not fit the range of {tensor.dtype}."
            )
    return compressed


def needs(spec: LayerSpec) -> frozenset[Needs]:
    """Return the calibration statistics that a spec asks for."""
    return frozenset().union(*(_method(part).needs for part in spec.filled()))


def version(spec: LayerSpec) -> str:
    """Return the versions of the methods involved: ``wanda@1+gptq@1``; ``dense@1`` for none."""
    parts = [f"{part.method}@{_method(part).version}" for part in spec.filled()]
    return "+".join(parts) or "dense@1"


def check(spec: LayerSpec, kind: SiteKind, shape: Shape) -> None:
    """Check that a spec can be applied to a site.

    Raises:
        UnsupportedError: If a method does not apply to this kind of site or the slots do not go
            together.
        PlanError: If the spec does not fit the shape.
    """
    for part in spec.filled():
        kinds = _method(part).kinds
        if kind not in kinds:
            raise UnsupportedError(
                f"{spec.token()}: {part.method} applies to {', '.join(sorted(kinds))}, "
                f"not to a site of kind {kind!r}."
            )
    if kind == "subblock":
        _combination(spec)
    else:
        layout(spec, shape, "float16")


def _method(part: Spec) -> Any:
    """Return the method of one slot's spec."""
    return METHODS[part.method]()


def _shape(weight: Tensor) -> Shape:
    """Return (out, in)."""
    return weight.shape[0], weight.shape[1]


# --- one slot, or none


def _dense_layout(spec: LayerSpec, shape: Shape, dtype: str) -> Format:
    return Dense(shape, dtype)


def _dense(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    return Dense(_shape(weight), dtype).pack(weight)


def _alone_layout(spec: LayerSpec, shape: Shape, dtype: str) -> Format:
    (part,) = spec.filled()
    found: Format = _method(part).layout(part, shape, dtype)
    return found


def _alone(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    (part,) = spec.filled()
    compressed: CompressedWeight = _method(part).compress(weight, part, stats, dtype)
    return compressed


# --- mask and quantizer


def _sparse_layout(spec: LayerSpec, shape: Shape, dtype: str) -> Any:
    quantizer = spec.quantizer
    grid = Grid(quantizer.bits, quantizer.group_size, quantizer.symmetric)
    return _method(spec.mask).layout(spec.mask, shape, dtype, grid)


def _sparse(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    """Prune and round; in one run of the column solver when a method needs the Hessian.

    A fixed mask comes first, and the grid is that of the kept values and zero. An adaptive mask
    is chosen inside the solver, so the grid is that of the whole weight. Columns are visited in
    act-order if the quantizer asks for it, but in natural order for an adaptive N:M mask.
    """
    mask, quantizer = _method(spec.mask), _method(spec.quantizer)
    packed = _sparse_layout(spec, _shape(weight), dtype)
    keep = None
    if not mask.adaptive:
        keep = mask.mask(weight, spec.mask, stats)
        weight = weight * keep
    grid = quantizer.grid(weight, spec.quantizer)
    codes = None
    if Needs.HESSIAN in needs(spec):
        patterned = mask.adaptive and spec.mask.m is not None
        act_order = Needs.HESSIAN in quantizer.needs and not patterned
        factor = ColumnFactor.shared(stats, act_order, spec.token(), weight.shape[1])
        prune = spec.mask if mask.adaptive else None
        _, codes, keep, _ = solve_columns(weight, factor, keep=keep, prune=prune, grid=grid)
    else:
        codes = grid.codes(weight)
    compressed: CompressedWeight = packed.pack(keep, codes, grid.scale, grid.zero)
    return compressed


# --- factor and quantizer


def factor_group(group_size: int | None, inputs: int) -> int | None:
    """Return a factor's group size: the largest divisor of its inputs up to the one asked for."""
    if group_size is None:
        return None
    return max(size for size in range(1, min(group_size, inputs) + 1) if inputs % size == 0)


def _factor_spec(spec: LayerSpec, inputs: int) -> UniformSpec:
    """Return the quantizer's spec for a factor with that many inputs."""
    quantizer: UniformSpec = spec.quantizer
    return replace(quantizer, group_size=factor_group(quantizer.group_size, inputs))


def _factors_layout(spec: LayerSpec, shape: Shape, dtype: str) -> Any:
    quantizer, rank = _method(spec.quantizer), spec.factor.rank_for(shape)
    left, right = (
        quantizer.layout(_factor_spec(spec, inputs), (outputs, inputs), dtype)
        for outputs, inputs in ((shape[0], rank), (rank, shape[1]))
    )
    return Factors(shape, rank, left, right)


def _factors(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    """Round both factors; with feedback when a method needs the Hessian.

    Then B is rounded by the column solver under H (exact, since ``Aᵀ A`` is diagonal), A
    refitted to the rounded B̂, ``A = W H B̂ᵀ (B̂ H B̂ᵀ)⁻¹``, and rounded under ``B̂ H B̂ᵀ``, the
    second moments of its input.
    """
    packed = _factors_layout(spec, _shape(weight), dtype)
    left, right = _method(spec.factor).factors(weight, spec.factor, stats)
    if Needs.HESSIAN not in needs(spec):
        return packed.pack(_round(left, spec, None)[0], _round(right, spec, None)[0])
    hessian = require(stats, "hessian", spec.token(), weight.shape[1]).double()
    right_packed, rounded = _round(right, spec, stats)
    seen = rounded.double() @ hessian
    inner = seen @ rounded.T.double()
    inner_factor = cholesky(inner, REFIT_DAMPING)
    left = torch.cholesky_solve(seen @ weight.T.double(), inner_factor).T.float()
    return packed.pack(_round(left, spec, Stats(hessian=inner))[0], right_packed)


def _round(
    factor: Tensor, spec: LayerSpec, stats: Stats | None
) -> tuple[CompressedWeight, Tensor]:
    """Round a factor (out, in), by the column solver if statistics of its input are given."""
    quantizer, part = _method(spec.quantizer), _factor_spec(spec, factor.shape[1])
    grid = quantizer.grid(factor, part)
    if stats is None:
        codes = grid.codes(factor)
    else:
        columns = ColumnFactor.shared(stats, True, spec.token(), factor.shape[1])
        codes = solve_columns(factor, columns, grid=grid).codes
    packed = quantizer.layout(part, _shape(factor), "").pack(codes, grid.scale, grid.zero)
    return packed, packed.to_dense()


class Combination(NamedTuple):
    """How a set of filled slots is laid out and solved."""

    layout: Callable[[LayerSpec, Shape, str], Any]
    compress: Callable[[Tensor, LayerSpec, Stats | None, str], CompressedWeight]


_ALONE = Combination(_alone_layout, _alone)
COMBINATIONS: dict[tuple[str, ...], Combination] = {
    (): Combination(_dense_layout, _dense),
    ("structure",): _ALONE,
    ("quantizer",): _ALONE,
    ("mask",): _ALONE,
    ("factor",): _ALONE,
    ("mask", "quantizer"): Combination(_sparse_layout, _sparse),
    ("factor", "quantizer"): Combination(_factors_layout, _factors),
}


def _combination(spec: LayerSpec) -> Combination:
    """Return the entry of the table for a spec's filled slots."""
    slots = tuple(slot for slot in SLOTS if getattr(spec, slot) is not None)
    if slots not in COMBINATIONS:
        known = ", ".join(" + ".join(known) for known in COMBINATIONS if len(known) > 1)
        raise UnsupportedError(
            f"{spec.token()}: {' + '.join(slots)} do not go together; those that do: {known}."
        )
    return COMBINATIONS[slots]
