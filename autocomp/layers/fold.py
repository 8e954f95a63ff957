"""Fold: input scales that move into whatever makes the input, so that nothing of them is stored.

A weight that is stored as ``W · s`` reads ``x / s``. Where all linears that read x hold the same
s, the norm or the linear in front makes ``x / s`` itself: its weight and bias are divided by s,
once and for all. The model computes the same up to the rounding of what was divided.

Reference: Xiao et al. 2022, SmoothQuant, https://arxiv.org/abs/2211.10438
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE
from autocomp.formats.base import CompressedWeight, torch_dtype, within
from autocomp.formats.dense import Dense
from autocomp.formats.prepared import Prepared
from autocomp.formats.steps import Scale
from autocomp.models.producers import Producer

Weights = dict[str, CompressedWeight]
Rest = dict[str, Tensor]

LARGEST_ERROR = 2**-8


@torch.no_grad()
def fold(
    plan: Plan,
    sketch: Sketch,
    producers: Mapping[str, Producer],
    weights: Mapping[str, CompressedWeight],
    rest: Mapping[str, Tensor],
) -> tuple[Plan, Weights, Rest]:
    """Return plan, weights and other parameters with every scale folded that can be.

    A scale stays where the readers of an input hold different ones or none, where channels that
    come from one row of the producer have different ones, where the producer's format cannot hold
    divided rows to 2⁻⁸ of them, and where its outputs pass a compressed cache. Nothing given is
    modified.

    Args:
        plan: The plan of the weights.
        sketch: Sketch of the model.
        producers: What makes each input, see :func:`autocomp.models.producers.producers`.
        weights: The compressed weight of every site that is not bypassed.
        rest: The other parameters by name, of any float dtype.

    Returns:
        The plan with ``folded`` input specs, the weights, and the other parameters, those that
        changed in the dtype in which they are stored.
    """
    layers, done, others = dict(plan.layers), dict(weights), dict(rest)
    for producer in producers.values():
        readers = [name for name in producer.readers if name in done]
        divisor = _divisor(producer, [done[name] for name in readers], sketch)
        if divisor is None or _is_cached(plan, sketch, producer):
            continue
        divided = _divide(producer, divisor, done, others, sketch)
        if divided is None:
            continue
        done |= divided[0]
        others |= divided[1]
        for name in readers:
            done[name] = without_input(done[name])
            layers[name] = replace(layers[name], input=replace(layers[name].input, folded=True))
    return replace(plan, layers=layers), done, others


def _divisor(
    producer: Producer, readers: Sequence[CompressedWeight], sketch: Sketch
) -> Tensor | None:
    """Return what each row of the producer is divided by, (rows,) fp32, or ``None``."""
    scales: list[Tensor] = []
    for weight in readers:
        layout = weight.layout
        if not isinstance(layout, Prepared) or not isinstance(layout.input, Scale):
            return None
        scales.append(within(weight.tensors, "input")["scale"])
    if not scales or any(not torch.equal(scale, scales[0]) for scale in scales):
        return None
    scale, rows = scales[0].float(), producer.rows.to(scales[0].device)
    height = sketch[producer.name].shape[0] if producer.kind == "linear" else len(rows)
    divisor = scale.new_ones(height)
    divisor[rows] = scale
    return divisor if torch.equal(divisor[rows], scale) else None


def _is_cached(plan: Plan, sketch: Sketch, producer: Producer) -> bool:
    """Return whether a compressed cache may hold what the producer makes."""
    owner = sketch.owner.get(producer.name)
    members = () if owner is None else sketch[owner].members
    return any(sketch[name].kind == "cache" and plan[name] != DENSE for name in members)


def _divide(
    producer: Producer,
    divisor: Tensor,
    weights: Mapping[str, CompressedWeight],
    rest: Mapping[str, Tensor],
    sketch: Sketch,
) -> tuple[Weights, Rest] | None:
    """Return what of a producer changes when its rows are divided, ``None`` where it cannot be."""

    def stored(name: str, exact: Tensor) -> Tensor:
        return exact.to(torch_dtype(sketch.rest[name].dtype))

    name, bias = f"{producer.name}.weight", f"{producer.name}.bias"
    changed: Rest = {}
    if producer.has_bias:
        changed[bias] = stored(bias, rest[bias].float() / divisor.to(rest[bias].device))
    if producer.kind == "linear":
        weight = _divide_rows(weights[producer.name], divisor)
        return None if weight is None else ({producer.name: weight}, changed)
    exact = (rest[name].float() + producer.offset) / divisor.to(rest[name].device)
    changed[name] = stored(name, exact - producer.offset)
    return ({}, changed) if _is_close(changed[name].float() + producer.offset, exact) else None


def _divide_rows(weight: CompressedWeight, divisor: Tensor) -> CompressedWeight | None:
    """Return a weight whose rows are divided, ``None`` where its format cannot hold that.

    Of a matrix on a uniform grid only the scales change, which lie within one row each; where rows
    share what their scales are stored by, they cannot.
    """
    dense = weight.to_dense()
    if isinstance(weight.layout, Dense):
        divided = weight.layout.pack(dense / divisor[:, None])
        return divided if bool(torch.isfinite(divided.tensors["weight"]).all()) else None
    leaf = weight.grid_leaf(dense)
    if leaf is None or leaf.fixed or leaf.offset is not None:
        return None
    scale = leaf.scale / divisor[:, None]
    if not _is_close(scale.half(), scale):
        return None
    return leaf.regrid(leaf.codes, scale, leaf.zero)


def _is_close(rounded: Tensor, exact: Tensor) -> bool:
    """Return whether rounding moved no number by more than 2⁻⁸ of it."""
    return bool(((rounded.float() - exact).abs() <= LARGEST_ERROR * exact.abs()).all())


def without_input(weight: CompressedWeight) -> CompressedWeight:
    """Return a prepared weight without its input step."""
    layout = weight.layout
    assert isinstance(layout, Prepared)
    inner = layout.unpack(weight.tensors)
    if layout.activation is None:
        return inner
    kept = replace(layout, input=None)
    return kept.pack(inner, activation=within(weight.tensors, "activation"))
