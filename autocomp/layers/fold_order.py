"""Fold of orders: a permutation that moves into the rows that make the input.

A weight that is stored as ``W[:, p]`` reads ``x[p]``. Inside an MLP every channel of x is made by
one row of each linear in front, so these linears can make ``x[p]`` themselves: their rows, and
their biases, are put in the order p. Rows move as they are stored, so the fold is exact.

Nowhere else is it. What a norm makes is the residual stream, which all blocks share in one order;
and channels of values may move only within their head, which an order of all inputs does not keep.

Reference: Pool and Yu 2021, Channel Permutations for N:M Sparsity,
https://proceedings.neurips.cc/paper/2021/hash/6e8404c3b93a9527c8db241a1846599a-Abstract.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from autocomp.core.plan import Plan
from autocomp.formats.base import CompressedWeight, within
from autocomp.formats.bitmask import Bitmask
from autocomp.formats.dense import Dense
from autocomp.formats.nm import NM
from autocomp.formats.prepared import Prepared
from autocomp.formats.steps import Permutation
from autocomp.layers.fold import Rest, Weights, without_input
from autocomp.models.producers import Producer


@torch.no_grad()
def fold_orders(
    plan: Plan,
    makers: Mapping[str, Sequence[Producer]],
    weights: Mapping[str, CompressedWeight],
    rest: Mapping[str, Tensor],
) -> tuple[Plan, Weights, Rest]:
    """Return plan, weights and other parameters with every order folded that can be.

    An order stays where a linear in front is bypassed or a compressed form cannot have its rows
    moved. Nothing given is modified.

    Args:
        plan: The plan of the weights.
        makers: The linears that together make each input of one reader, see
            :func:`autocomp.models.producers.row_makers`.
        weights: The compressed weight of every site that is not bypassed.
        rest: The other parameters by name.

    Returns:
        The plan with ``folded`` input specs, the weights, and the other parameters.
    """
    layers, done, others = dict(plan.layers), dict(weights), dict(rest)
    for producers in makers.values():
        (reader,) = producers[0].readers
        order = _order(done.get(reader))
        if order is None or any(producer.name not in done for producer in producers):
            continue
        moved: dict[str, CompressedWeight] = {}
        for producer in producers:
            weight = moved.get(producer.name, done[producer.name])
            found = reordered(weight, rows_in_order(producer, order, weight.layout.shape[0]))
            if found is None:
                break
            moved[producer.name] = found
        else:
            for producer in producers:
                if producer.has_bias:
                    bias = f"{producer.name}.bias"
                    rows = rows_in_order(producer, order, len(others[bias]))
                    others[bias] = others[bias][rows.to(others[bias].device)]
            done |= moved
            done[reader] = without_input(done[reader])
            layers[reader] = replace(
                layers[reader], input=replace(layers[reader].input, folded=True)
            )
    return replace(plan, layers=layers), done, others


def _order(weight: CompressedWeight | None) -> Tensor | None:
    """Return the order (in,) int64 in which a weight reads its input, if it has one."""
    layout = None if weight is None else weight.layout
    if weight is None or not isinstance(layout, Prepared):
        return None
    if not isinstance(layout.input, Permutation):
        return None
    return within(weight.tensors, "input")["order"].long()


def rows_in_order(producer: Producer, order: Tensor, height: int) -> Tensor:
    """Return which row of a producer comes where, (height,) int64, so that it makes ``x[p]``."""
    rows = torch.arange(height, device=order.device)
    made = producer.rows.to(order.device)
    rows[made] = made[order]
    return rows


def reordered(weight: CompressedWeight, rows: Tensor) -> CompressedWeight | None:
    """Return a weight with its rows in another order, to the bit; ``None`` where that cannot be.

    It can where each row is stored by itself: dense, on a uniform grid, and either of these behind
    a mask, with input and activation steps or without.

    Args:
        weight: Of shape (out, in).
        rows: (out,) int64, which row comes where.
    """
    layout, tensors = weight.layout, weight.tensors
    if isinstance(layout, Prepared):
        inner = reordered(layout.unpack(tensors), rows)
        if inner is None:
            return None
        return layout.pack(inner, within(tensors, "input"), within(tensors, "activation"))
    dense = weight.to_dense()
    if isinstance(layout, Dense):
        return layout.pack(dense[rows])
    leaf = weight.grid_leaf(dense)
    if isinstance(layout, Bitmask | NM):
        keep = layout.keep_mask(tensors)[rows]
        if leaf is None:
            return layout.pack(keep, dense[rows])
        return layout.pack(keep, leaf.codes[rows], leaf.scale[rows], leaf.zero[rows])
    if leaf is None or leaf.fixed or leaf.offset is not None:
        return None
    found = leaf.regrid(leaf.codes[rows], leaf.scale[rows], leaf.zero[rows])
    return found if torch.equal(found.to_dense(), dense[rows]) else None
