"""Random weights in any format: what a time depends on, without calibration.

Time depends on the format and the shape alone, so a method that needs statistics is replaced by
one that stores alike and needs none, where there is one.
"""

from dataclasses import replace

import torch

from autocomp.core.errors import AutocompError
from autocomp.core.registry import load_object
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight, Format

CHEAP = {"quantizer": "rtn", "mask": "magnitude", "factor": "svd"}
"""The method of each slot that needs no statistics."""

SAMPLE_ROWS = 64


class Forms:
    """Random packed weights by format, each made once and handed out as copies.

    Args:
        dtype: Dtype of uncompressed values in files, ``float16`` or ``bfloat16``.
        seed: Of the weights.
    """

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.dtype = dtype
        self._seed = seed
        self._made: dict[Format, CompressedWeight] = {}

    def weight(self, spec: LayerSpec, shape: tuple[int, int]) -> CompressedWeight:
        """Return a weight in memory of its own.

        Args:
            spec: What is done to it.
            shape: (out, in).

        Raises:
            PlanError: If the spec does not fit the shape.
        """
        layout = load_object("autocomp.methods.compose:layout")(spec, shape, self.dtype)
        if layout not in self._made:
            generator = torch.Generator().manual_seed(self._seed)
            dense = torch.randn(shape, generator=generator) / shape[1] ** 0.5
            cheap = stand_in(spec, shape, self.dtype)
            compress = load_object("autocomp.methods.compose:compress")
            self._made[layout] = compress(dense, cheap, plain_stats(cheap, shape), self.dtype)
        found = self._made[layout]
        copies = {name: tensor.clone() for name, tensor in found.tensors.items()}
        return CompressedWeight(found.layout, copies)

    def forget(self) -> None:
        """Drop what was made."""
        self._made.clear()


def stand_in(spec: LayerSpec, shape: tuple[int, int], dtype: str) -> LayerSpec:
    """Return a spec of the same format whose methods need as little as possible.

    Args:
        spec: A spec.
        shape: (out, in).
        dtype: Dtype of uncompressed values in files.
    """
    layout = load_object("autocomp.methods.compose:layout")
    wanted, found = layout(spec, shape, dtype), replace(spec, refinement=None)
    for slot, method in CHEAP.items():
        part = getattr(found, slot)
        if part is None or part.method == method:
            continue
        try:
            token = method + part.token().removeprefix(part.method)
            other = replace(found, **{slot: getattr(LayerSpec.parse(token), slot)})
            if layout(other, shape, dtype) == wanted:
                found = other
        except AutocompError:  # the cheap method cannot say it; the spec's own is taken
            continue
    return found


def plain_stats(spec: LayerSpec, shape: tuple[int, int]) -> Stats | None:
    """Return the statistics of independent inputs of unit variance that a spec asks for.

    Args:
        spec: A spec.
        shape: (out, in).
    """
    needs: frozenset[Needs] = load_object("autocomp.methods.compose:needs")(spec)
    if not needs:
        return None
    rows, columns = shape
    ones, generator = torch.ones(columns), torch.Generator().manual_seed(0)
    return Stats(
        tokens=SAMPLE_ROWS,
        hessian=torch.eye(columns) if Needs.HESSIAN in needs else None,
        norms=ones,
        mean=torch.zeros(columns),
        absmean=ones,
        absmax=3 * ones,
        fisher=torch.eye(rows) if Needs.FISHER in needs else None,
        sample=torch.randn(SAMPLE_ROWS, columns, generator=generator),
        sample_gradient=torch.randn(SAMPLE_ROWS, rows, generator=generator),
        digest="plain",
    )
