"""Packed products as operators of ``torch.library``, so that ``torch.compile`` sees one node each.

A compiled graph holds the operator, not what runs inside: the back-end is still chosen at every
call, by the number of rows that really come.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from autocomp.formats.base import Format, format_from_json


def description(layout: Format, tensors: Mapping[str, Tensor]) -> str:
    """Return what an operator has to know beside the tensors, as text.

    Args:
        layout: The format.
        tensors: Stored or settled tensors by local name, in the order in which they are given.
    """
    return json.dumps([layout.to_json(), list(tensors)])


@lru_cache(maxsize=4096)
def _described(text: str) -> tuple[Format, tuple[str, ...]]:
    """Return the layout and the names of the tensors."""
    layout, names = json.loads(text)
    return format_from_json(layout), tuple(names)


@torch.library.custom_op("autocomp::packed_matmul", mutates_args=())
def packed_matmul(inputs: Tensor, tensors: Sequence[Tensor], text: str) -> Tensor:
    """Return ``x Ŵᵀ`` (rows, out) of inputs (rows, in); ``text`` is a :func:`description`."""
    layout, names = _described(text)
    return layout.matmul(dict(zip(names, tensors, strict=True)), inputs)


@packed_matmul.register_fake
def _(inputs: Tensor, tensors: Sequence[Tensor], text: str) -> Tensor:
    return inputs.new_empty((inputs.shape[0], _described(text)[0].shape[0]))


@torch.library.custom_op("autocomp::packed_rows", mutates_args=())
def packed_rows(index: Tensor, tensors: Sequence[Tensor], text: str) -> Tensor:
    """Return rows (n, in) fp32 of integers (n,); ``text`` is a :func:`description`."""
    layout, names = _described(text)
    return layout.rows(dict(zip(names, tensors, strict=True)), index)


@packed_rows.register_fake
def _(index: Tensor, tensors: Sequence[Tensor], text: str) -> Tensor:
    shape = (index.shape[0], _described(text)[0].shape[1])
    return torch.empty(shape, dtype=torch.float32, device=index.device)
