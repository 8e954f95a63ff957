"""From a layer spec to a compressed weight: which slots go together and which solver runs them.

The only door to the methods for the rest of autocomp. Methods are looked up in ``METHODS``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError, PlanError, UnsupportedError
from autocomp.core.method import Reader
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import BITS, SLOTS, LayerSpec, Spec, UniformSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.prepared import Prepared
from autocomp.formats.steps import Step
from autocomp.formats.sum import Sum
from autocomp.methods._joint import (
    Shape,
    combination,
    method_of,
    needs_alone,
    shape_of,
    stack_of,
    stacks,
)
from autocomp.methods._steps import needs_behind, stepped
from autocomp.methods._two_streams import towards_dense
from autocomp.methods._uniform import AffineGrid

__all__ = [
    "check",
    "check_slots",
    "compress",
    "compress_together",
    "fit_input",
    "layout",
    "needs",
    "stacks",
    "version",
]


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
    check_slots(spec)
    return _layout(spec, shape, dtype)


@torch.no_grad()
def compress(
    weight: Tensor,
    spec: LayerSpec,
    stats: Stats | None,
    dtype: str,
    step: Mapping[str, Tensor] | None = None,
) -> CompressedWeight:
    """Compress the weight of one site; deterministic, a function of its arguments alone.

    Args:
        weight: (out, in), not modified; computed with in fp32.
        spec: What is done to the site.
        stats: What :func:`needs` asks for; ``None`` if that is nothing.
        dtype: Dtype of uncompressed values, ``float16`` or ``bfloat16``.
        step: Tensors of the input step when they are fixed already (see :func:`fit_input`).

    Raises:
        NumericalError: If the weight holds NaN or infinity, the result would, or H cannot be
            factorised.
        PlanError: If the spec does not fit the shape, or a statistic is missing or belongs to an
            input of another width.
        UnsupportedError: If the slots do not go together.
    """
    weight = _checked(weight, spec, stats)
    return _finite(_compress(weight, spec, stats, dtype, step), spec)


@torch.no_grad()
def compress_together(
    weights: Sequence[Tensor], specs: Sequence[LayerSpec], stats: Stats | None, dtype: str
) -> list[CompressedWeight]:
    """Compress weights that read the same input, each as :func:`compress` would by itself.

    Args:
        weights: Each (out, in).
        specs: What is done to each; those of a stack (see :func:`stacks`) in one run.
        stats: Statistics of the input.
        dtype: Dtype of uncompressed values.

    Raises:
        As :func:`compress`.
    """
    if len({stack_of(spec) for spec in specs}) > 1 or stack_of(specs[0]) is None:
        pairs = zip(weights, specs, strict=True)
        return [compress(weight, spec, stats, dtype) for weight, spec in pairs]
    checked = [_checked(weight, spec, stats) for weight, spec in zip(weights, specs, strict=True)]
    quantizers = [spec.quantizer for spec in specs]
    found = method_of(quantizers[0]).compress_together(checked, quantizers, stats, dtype)
    return [_finite(weight, spec) for weight, spec in zip(found, specs, strict=True)]


def _checked(weight: Tensor, spec: LayerSpec, stats: Stats | None) -> Tensor:
    """Return what to compress, fp32: the weight, checked, or what stands for it under a drift."""
    if weight.dim() != 2:
        raise PlanError(f"a weight is a matrix (out, in), got shape {tuple(weight.shape)}.")
    check_slots(spec)
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise NumericalError(
            f"the weight holds NaN or infinity; {spec.token()} cannot compress it."
        )
    _check_width(stats, spec, weight.shape[1])
    return towards_dense(weight, stats, spec.token())


def _finite(compressed: CompressedWeight, spec: LayerSpec) -> CompressedWeight:
    """Return a compressed weight unless a value does not fit its dtype."""
    for name, tensor in compressed.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise NumericalError(
                f"{spec.token()}: {name} does not fit the range of {tensor.dtype}."
            )
    return compressed


def _check_width(stats: Stats | None, spec: LayerSpec, in_features: int) -> None:
    """Refuse statistics of an input of another width."""
    for name in (
        "hessian",
        "norms",
        "mean",
        "absmean",
        "absmax",
        "sample",
        "sensitivity",
        "drift",
    ):
        value = getattr(stats, name, None)
        if value is not None and value.shape[-1] != in_features:
            raise PlanError(
                f"{spec.token()}: {name!r} has {value.shape[-1]} inputs, the weight {in_features}."
            )


def needs(spec: LayerSpec) -> frozenset[Needs]:
    """Return the calibration statistics that a spec asks for, those of its input step included."""
    behind = needs_behind(_step(spec.input, (1, 1)), needs_alone(replace(spec, input=None)))
    return behind | needs_alone(LayerSpec(input=spec.input))


def version(spec: LayerSpec) -> str:
    """Return the versions of the methods involved: ``wanda@1+gptq@1``; ``dense@1`` for none."""
    parts = [f"{part.method}@{method_of(part).version}" for part in spec.filled()]
    return "+".join(parts) or "dense@1"


def check(spec: LayerSpec, kind: SiteKind, shape: Shape) -> None:
    """Check that a spec can be applied to a site.

    Raises:
        UnsupportedError: If a method does not apply to this kind of site, the slots do not go
            together, or an input is folded already.
        PlanError: If the spec does not fit the shape.
    """
    for part in spec.filled():
        kinds = method_of(part).kinds
        if kind not in kinds:
            raise UnsupportedError(
                f"{spec.token()}: {part.method} applies to {', '.join(sorted(kinds))}, "
                f"not to a site of kind {kind!r}."
            )
    check_slots(spec)
    _check_unfolded(spec)
    if kind not in ("subblock", "cache"):
        layout(spec, shape, "float16")


@torch.no_grad()
def fit_input(
    weights: Sequence[Tensor], specs: Sequence[LayerSpec], stats: Stats | None
) -> dict[str, Tensor]:
    """Return the tensors of one input step for linears that read the same input.

    Args:
        weights: Each (out, in).
        specs: Their layer specs, all with the same input slot.
        stats: Statistics of the input.

    Raises:
        PlanError: If the input slots differ, or a statistic is missing.
    """
    inputs = {spec.input for spec in specs}
    if len(inputs) != 1:
        raise PlanError(f"one input has one step, got {sorted(map(str, inputs))}.")
    readers = [
        Reader(
            weight=weight.detach().float(),
            spec=replace(spec, input=None, activation=None),
            rounded=_rounder(spec),
            rounded_input=_input_rounder(spec.activation, shape_of(weight)),
        )
        for weight, spec in zip(weights, specs, strict=True)
    ]
    found: dict[str, Tensor] = method_of(specs[0].input).fit(readers, specs[0].input, stats)
    return found


TOGETHER = frozenset(
    frozenset(pair)
    for pair in (
        ("input", "factor"),
        ("input", "mask"),
        ("input", "refinement"),
        ("input", "quantizer"),
        ("input", "residual"),
        ("input", "activation"),
        ("factor", "quantizer"),
        ("factor", "activation"),
        ("mask", "refinement"),
        ("mask", "quantizer"),
        ("mask", "residual"),
        ("mask", "activation"),
        ("refinement", "quantizer"),
        ("refinement", "residual"),
        ("refinement", "activation"),
        ("quantizer", "residual"),
        ("quantizer", "activation"),
        ("residual", "activation"),
    )
)
"""Slots that go together; a set of slots does when all its pairs do and REQUIRES is met."""

REQUIRES = {
    "input": ("factor", "mask", "quantizer"),
    "refinement": ("mask",),
    "residual": ("mask", "quantizer"),
    "activation": ("quantizer",),
}
"""Slots of which one must be filled for the key to make sense."""


def check_slots(spec: LayerSpec) -> None:
    """Check that the filled slots go together.

    Raises:
        UnsupportedError: If they do not; the message says which do.
    """
    slots = [slot for slot in SLOTS if getattr(spec, slot) is not None]
    for pair in combinations(slots, 2):
        if frozenset(pair) not in TOGETHER:
            partners = sorted({p for known in TOGETHER if pair[0] in known for p in known})
            raise UnsupportedError(
                f"{spec.token()}: {' + '.join(pair)} do not go together; {pair[0]} goes with "
                f"{', '.join(p for p in partners if p != pair[0]) or 'nothing else'}."
            )
    for slot, needed in REQUIRES.items():
        if slot in slots and not set(needed) & set(slots):
            raise UnsupportedError(
                f"{spec.token()}: the {slot} slot needs one of {', '.join(needed)} beside it."
            )
    for part in spec.filled():
        method = method_of(part)
        if hasattr(method, "check_layer"):
            method.check_layer(spec)
    step = _step(spec.input, (1, 1))
    if step is not None and not step.diagonal and Needs.SENSITIVITY in needs_alone(spec):
        raise UnsupportedError(
            f"{spec.token()}: what a single weight is worth is not known behind "
            f"{spec.input.method}, which mixes inputs."
        )


def _layout(spec: LayerSpec, shape: Shape, dtype: str) -> Format:
    """Return the layout: input and activation around a residual around the other slots."""
    if spec.input is not None or spec.activation is not None:
        inner = _layout(replace(spec, input=None, activation=None), shape, dtype)
        input_step, activation_step = _step(spec.input, shape), _step(spec.activation, shape)
        if input_step is None and activation_step is None:
            return inner
        return Prepared(shape, inner, input_step, activation_step)
    if spec.residual is not None:
        base = _layout(replace(spec, residual=None), shape, dtype)
        return Sum(shape, base, method_of(spec.residual).layout(spec.residual, shape, dtype))
    found: Format = combination(spec).layout(spec, shape, dtype)
    return found


def _compress(
    weight: Tensor,
    spec: LayerSpec,
    stats: Stats | None,
    dtype: str,
    step: Mapping[str, Tensor] | None = None,
) -> CompressedWeight:
    """Compress as :func:`_layout` lays out; ``weight`` is (out, in), fp32."""
    if spec.input is not None or spec.activation is not None:
        return _prepared(weight, spec, stats, dtype, step)
    if spec.residual is not None:
        base = _compress(weight, replace(spec, residual=None), stats, dtype)
        correction: CompressedWeight = method_of(spec.residual).compress(
            weight - base.to_dense(), spec.residual, stats, dtype
        )
        return Sum(shape_of(weight), base.layout, correction.layout).pack(base, correction)
    found: CompressedWeight = combination(spec).compress(weight, spec, stats, dtype)
    return found


# --- input and activation


def _step(part: Spec | None, shape: Shape) -> Step | None:
    """Return the stored step of an input or activation slot; a folded one stores nothing."""
    if part is None or getattr(part, "folded", False):
        return None
    found: Step = method_of(part).step(part, shape[1])
    return found


def _check_unfolded(spec: LayerSpec) -> None:
    """Check that a spec is something to do, not something that was done."""
    if getattr(spec.input, "folded", False):
        raise UnsupportedError(
            f"{spec.token()}: a folded scale is the result of a finish, not an option."
        )


def _prepared(
    weight: Tensor,
    spec: LayerSpec,
    stats: Stats | None,
    dtype: str,
    fixed: Mapping[str, Tensor] | None,
) -> CompressedWeight:
    """Choose the input step, compress ``W T⁻¹`` under the statistics of ``T x``, round ``T x``."""
    _check_unfolded(spec)
    rest = replace(spec, input=None, activation=None)
    step = _step(spec.input, shape_of(weight))
    tensors: Mapping[str, Tensor] = {}
    if step is not None:
        tensors = fit_input([weight], [spec], stats) if fixed is None else fixed
        weight, stats = step.absorb(weight, tensors), stepped(stats, step, tensors)
    activation, rounding = _step(spec.activation, shape_of(weight)), {}
    if activation is not None:
        rounding = method_of(spec.activation).fit((), spec.activation, stats)
    inner = _compress(weight, rest, stats, dtype)
    packed = Prepared(shape_of(weight), inner.layout, step, activation)
    return packed.pack(inner, tensors, rounding)


def _input_rounder(part: Spec | None, shape: Shape) -> Callable[[Tensor, Stats | None], Tensor]:
    """Return what rounds inputs (…, in), given their statistics, as an activation slot does."""
    step = _step(part, shape)

    def rounded(inputs: Tensor, stats: Stats | None) -> Tensor:
        if part is None or step is None:
            return inputs
        return step.apply(inputs, method_of(part).fit((), part, stats))

    return rounded


def _rounder(spec: LayerSpec) -> Callable[[Tensor, Stats | None], Tensor]:
    """Return a cheap stand-in for compressing a weight: its unclipped grid, nearest codes.

    Of a quantizer without one it is the uniform grid of as many bits.
    """
    quantizer = spec.quantizer
    if isinstance(quantizer, UniformSpec):
        quantizer = replace(quantizer, mse=False, clip=False)

    def rounded(weight: Tensor, stats: Stats | None) -> Tensor:
        if quantizer is None:
            return weight
        method = method_of(quantizer)
        if hasattr(method, "grid"):
            grid: AffineGrid = method.grid(weight, quantizer, stats)
        else:
            size = getattr(quantizer, "group_size", None)
            grid = AffineGrid.fit(weight, UniformSpec(max(quantizer.bits, BITS[0]), size))
        return grid.nearest(weight)

    return rounded
