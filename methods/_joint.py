"""The slots that make a weight, factor, mask and quantizer: one alone, or two solved jointly."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autocomp.core.errors import UnsupportedError
from autocomp.core.registry import METHODS
from autocomp.core.spec import SLOTS, LayerSpec, Spec, UniformSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.dense import Dense
from autocomp.formats.factors import Factors
from autocomp.formats.uniform import Grid
from autocomp.methods._column_solver import STACKED_ROWS, ColumnFactor, solve_columns
from autocomp.methods._hessian import cholesky, require

Shape = tuple[int, int]
REFIT_DAMPING = 1e-6


def method_of(part: Spec) -> Any:
    """Return the method of one slot's spec."""
    return METHODS[part.method]()


def shape_of(weight: Tensor) -> Shape:
    """Return (out, in)."""
    return weight.shape[0], weight.shape[1]


def needs_alone(spec: LayerSpec) -> frozenset[Needs]:
    """Return the calibration statistics that the methods of the slots ask for, one by one."""
    return frozenset().union(*(_part_needs(part) for part in spec.filled()))


def _part_needs(part: Spec) -> frozenset[Needs]:
    """Return what one slot asks for; ``needs_of`` of a method adds to what all its specs need."""
    method = method_of(part)
    always: frozenset[Needs] = method.needs
    return always | method.needs_of(part) if hasattr(method, "needs_of") else always


def has_feedback(spec: LayerSpec) -> bool:
    """Return whether a method solves under H, so that errors move into later columns.

    A grid that is clipped by H still rounds to nearest.
    """
    return any(Needs.HESSIAN in method_of(part).needs for part in spec.filled())


# --- several weights in one run


def stacks(rows: Sequence[int], specs: Sequence[LayerSpec]) -> list[list[int]]:
    """Return which weights that read the same input to compress together, by their index.

    Args:
        rows: Rows of each weight.
        specs: What is done to each.
    """
    found: list[list[int]] = []
    last: dict[tuple[str, int | None], list[int]] = {}
    for index, spec in enumerate(specs):
        kind = stack_of(spec)
        stack = None if kind is None else last.get(kind)
        if stack is None or sum(rows[other] for other in stack) + rows[index] > STACKED_ROWS:
            stack = []
            found.append(stack)
            if kind is not None:
                last[kind] = stack
        stack.append(index)
    return found


def stack_of(spec: LayerSpec) -> tuple[str, int | None] | None:
    """Return what specs have in common that one run can serve; ``None`` if it serves no other."""
    if spec.filled() != (spec.quantizer,):
        return None
    if not hasattr(method_of(spec.quantizer), "compress_together"):
        return None
    return spec.quantizer.method, spec.quantizer.group_size


# --- one slot, or none


def _dense_layout(spec: LayerSpec, shape: Shape, dtype: str) -> Format:
    return Dense(shape, dtype)


def _dense(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    return Dense(shape_of(weight), dtype).pack(weight)


def _alone_layout(spec: LayerSpec, shape: Shape, dtype: str) -> Format:
    (part,) = spec.filled()
    found: Format = method_of(part).layout(part, shape, dtype)
    return found


def _alone(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    (part,) = spec.filled()
    compressed: CompressedWeight = method_of(part).compress(weight, part, stats, dtype)
    return compressed


# --- mask, refinement and quantizer


def _chosen(weight: Tensor, spec: LayerSpec, stats: Stats | None) -> Tensor:
    """Return the mask (out, in) bool, refined where a slot asks for it."""
    keep: Tensor = method_of(spec.mask).mask(weight, spec.mask, stats)
    if spec.refinement is not None:
        refine = method_of(spec.refinement).refine
        keep = refine(weight, keep, spec.mask, spec.refinement, stats)
    return keep


def _refined_layout(spec: LayerSpec, shape: Shape, dtype: str) -> Any:
    return method_of(spec.mask).layout(spec.mask, shape, dtype)


def _refined(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    """Prune by a refined mask; under it an adaptive method updates what is kept once more."""
    packed = _refined_layout(spec, shape_of(weight), dtype)
    keep = _chosen(weight, spec, stats)
    if method_of(spec.mask).adaptive:
        factor = ColumnFactor.shared(stats, False, spec.token(), weight.shape[1])
        weight = solve_columns(weight, factor, keep=keep).weight
    compressed: CompressedWeight = packed.pack(keep, weight)
    return compressed


def _static(spec: LayerSpec) -> UniformSpec:
    """Return the quantizer's spec, on whose grids a mask or a factor can be rounded.

    Raises:
        UnsupportedError: If its codes do not lie on plain uniform grids.
    """
    quantizer = spec.quantizer
    if method_of(quantizer).formats != ("uniform",):
        raise UnsupportedError(
            f"{spec.token()}: a mask or a factor goes together with plain uniform grids, such as "
            "those of rtn or gptq."
        )
    found: UniformSpec = quantizer
    return found


def _sparse_layout(spec: LayerSpec, shape: Shape, dtype: str) -> Any:
    quantizer = _static(spec)
    grid = Grid(quantizer.bits, quantizer.group_size, quantizer.symmetric)
    return method_of(spec.mask).layout(spec.mask, shape, dtype, grid)


def _sparse(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    """Prune and round; in one run of the column solver when a method solves under H.

    A fixed mask comes first, and the grid is that of the kept values and zero. An adaptive mask
    is chosen inside the solver, so the grid is that of the whole weight; refined, it is chosen
    before, but what it removes still moves into the weights that it keeps. Columns are visited in
    act-order if the quantizer asks for it, but in natural order for an adaptive mask that was
    chosen in that order: of a pattern, or to be refined.
    """
    mask, quantizer = method_of(spec.mask), method_of(spec.quantizer)
    packed = _sparse_layout(spec, shape_of(weight), dtype)
    keep = None
    if not mask.adaptive or spec.refinement is not None:
        keep = _chosen(weight, spec, stats)
    if keep is not None and not mask.adaptive:
        weight = weight * keep
    grid = quantizer.grid(weight, spec.quantizer, stats)
    codes = None
    if has_feedback(spec):
        natural = mask.adaptive and (spec.mask.m is not None or spec.refinement is not None)
        act_order = Needs.HESSIAN in quantizer.needs and not natural
        factor = ColumnFactor.shared(stats, act_order, spec.token(), weight.shape[1])
        prune = spec.mask if keep is None else None
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
    quantizer = _static(spec)
    return replace(quantizer, group_size=factor_group(quantizer.group_size, inputs))


def _factors_layout(spec: LayerSpec, shape: Shape, dtype: str) -> Any:
    """Return a layout of two rounded factors, or of one weight where the method stores none."""
    factor, quantizer = method_of(spec.factor), method_of(spec.quantizer)
    if not hasattr(factor, "factors"):
        raise UnsupportedError(
            f"{spec.token()}: {spec.factor.method} rounds its factors itself; give it alone."
        )
    if not isinstance(factor.layout(spec.factor, shape, dtype), Factors):
        return quantizer.layout(_factor_spec(spec, shape[1]), shape, dtype)
    rank = spec.factor.rank_for(shape)
    left, right = (
        quantizer.layout(_factor_spec(spec, inputs), (outputs, inputs), dtype)
        for outputs, inputs in ((shape[0], rank), (rank, shape[1]))
    )
    return Factors(shape, rank, left, right)


def _factors(weight: Tensor, spec: LayerSpec, stats: Stats | None, dtype: str) -> CompressedWeight:
    """Round both factors; when a method needs the Hessian, the second one to the rounded first.

    Then B is rounded under H (exact, since ``Aᵀ A`` is diagonal), A refitted to the rounded B̂,
    ``A = W H B̂ᵀ (B̂ H B̂ᵀ)⁻¹``, and rounded under ``B̂ H B̂ᵀ``, the second moments of its input; by
    the column solver when a method solves under H.
    """
    packed = _factors_layout(spec, shape_of(weight), dtype)
    left, right = method_of(spec.factor).factors(weight, spec.factor, stats)
    if not isinstance(packed, Factors):
        return _round(left @ right, spec, stats)[0]
    if Needs.HESSIAN not in needs_alone(spec):
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
    """Round a factor (out, in), given statistics of its input where a method needs them."""
    quantizer, part = method_of(spec.quantizer), _factor_spec(spec, factor.shape[1])
    grid = quantizer.grid(factor, part, stats)
    if has_feedback(spec):
        columns = ColumnFactor.shared(stats, True, spec.token(), factor.shape[1])
        codes = solve_columns(factor, columns, grid=grid).codes
    else:
        codes = grid.codes(factor)
    packed = quantizer.layout(part, shape_of(factor), "").pack(codes, grid.scale, grid.zero)
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
    ("mask", "refinement"): Combination(_refined_layout, _refined),
    ("mask", "quantizer"): Combination(_sparse_layout, _sparse),
    ("mask", "refinement", "quantizer"): Combination(_sparse_layout, _sparse),
    ("factor", "quantizer"): Combination(_factors_layout, _factors),
}


def combination(spec: LayerSpec) -> Combination:
    """Return the entry of the table for the filled slots below input, residual, activation.

    Raises:
        UnsupportedError: If they make no weight, as a cache does not.
    """
    slots = tuple(slot for slot in SLOTS if getattr(spec, slot) is not None)
    if slots not in COMBINATIONS:
        raise UnsupportedError(f"{spec.token()}: {' + '.join(slots)} makes no weight.")
    return COMBINATIONS[slots]
