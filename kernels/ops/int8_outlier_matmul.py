"""Product of 8-bit weights and inputs whose outliers stay in floating point.

Reference: Dettmers et al. 2022, LLM.int8(), https://arxiv.org/abs/2208.07339
"""

import torch
from torch import Tensor

from autocomp.kernels._op import operation
from autocomp.kernels._tile import LEAST_ROWS
from autocomp.kernels._triton import (
    cdiv,
    jit,
    launch,
    options_of,
    power_of_two,
    tl,
    triton_backend,
)
from autocomp.kernels.dense_matmul import dense_matmul
from autocomp.kernels.int8_matmul import int8_matmul
from autocomp.kernels.quantize_activations import quantize_activations


def split_outliers(inputs: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return which inputs are outliers (…, in) bool, codes (…, in) fp32, and steps (…, 1) fp32.

    An input is one if its magnitude reaches the threshold; its code is 0. The others are rounded
    to ``±127`` steps of the largest magnitude among those of their token.
    """
    wide = inputs.to(torch.float32)
    outlying = wide.abs() >= threshold
    codes, step = quantize_activations.reference(wide.masked_fill(outlying, 0.0).flatten(0, -2), 8)
    return outlying, codes.view(wide.shape), step.view(*wide.shape[:-1], 1)


def _columns(codes: Tensor, scale: Tensor, chosen: Tensor) -> Tensor:
    """Return columns of the weight, (out, n) fp32."""
    return (codes[:, chosen].to(torch.float32) - 128) * scale.to(torch.float32)


@operation
def int8_outlier_matmul(inputs: Tensor, codes: Tensor, scale: Tensor, threshold: float) -> Tensor:
    """Multiply 8-bit codes of both sides in integers, outlying inputs as they are.

    ``y = t s Σ_regular q_x q_w + s Σ_outlying x q_w`` with the steps t and codes q_x of
    :func:`split_outliers`: what is outlying is decided for every row by itself.

    Args:
        inputs: x (rows, in) of a floating dtype.
        codes: (out, in) uint8, ``q_w + 128``.
        scale: s (out, 1) fp16.
        threshold: Magnitude from which on an input is an outlier; infinity is never.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    outlying, rounded, step = split_outliers(inputs, threshold)
    regular = dense_matmul.reference(rounded, codes.to(torch.float32) - 128)
    weight = _columns(codes, scale, torch.ones_like(outlying[0]))
    outside = inputs.to(torch.float32).masked_fill(~outlying, 0.0) @ weight.T
    return (regular * step * scale[:, 0].to(torch.float32) + outside).to(inputs.dtype)


@int8_outlier_matmul.operator
def _shape(inputs: Tensor, codes: Tensor, scale: Tensor, threshold: float) -> Tensor:
    return inputs.new_empty((inputs.shape[0], codes.shape[0]))


@int8_outlier_matmul.backend("parts", priority=1)
def _parts(inputs: Tensor, codes: Tensor, scale: Tensor, threshold: float) -> Tensor:
    """Multiply regular inputs by the integer product, gather the columns of the others."""
    outlying, rounded, step = split_outliers(inputs, threshold)
    regular = int8_matmul(rounded.to(inputs.dtype), step, codes, scale)
    chosen = outlying.any(dim=0)
    outside = inputs.masked_fill(~outlying, 0.0)[:, chosen]
    return regular + dense_matmul(outside, _columns(codes, scale, chosen))


@jit
def _kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    rounded: tl.tensor,
    marked: tl.tensor,
    step: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    threshold: float,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Integer sums of each tile; floating ones of those alone that hold an outlying input."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    taken, live = m < rows, n < features
    sums = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    outside = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for block in range(tl.cdiv(columns, BLOCK_K)):
        column = block * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = column < columns
        here = m[None, :].to(tl.int64) * columns + column[:, None]
        keep = inside[:, None] & taken[None, :]
        places = codes + n[:, None] * columns + column[None, :]
        code = tl.load(places, mask=live[:, None] & inside[None, :], other=128)
        weight = (code ^ 128).to(tl.int8, bitcast=True)
        sums = tl.dot(weight, tl.load(rounded + here, mask=keep, other=0), sums)
        mark = tl.load(marked + column, mask=inside, other=0)
        if tl.max(mark.to(tl.int32), axis=0) > 0:
            value = tl.load(inputs + here, mask=keep & (mark > 0)[:, None], other=0.0)
            value = tl.where(tl.abs(value.to(tl.float32)) >= threshold, value, 0.0)
            outside += tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    size = tl.load(step + m, mask=taken, other=0.0)[None, :]
    grid = tl.load(scale + n, mask=live, other=0.0).to(tl.float32)[:, None]
    found = (sums.to(tl.float32) * size + outside) * grid
    places = outputs + m[None, :].to(tl.int64) * features + n[:, None]
    tl.store(places, found.to(outputs.dtype.element_ty), mask=live[:, None] & taken[None, :])


def _not_contiguous(inputs: Tensor, codes: Tensor, scale: Tensor, threshold: float) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    if not (inputs.is_contiguous() and codes.is_contiguous()):
        return "takes contiguous tensors"
    return None if inputs.numel() and codes.numel() else "takes at least one row"


@triton_backend(int8_outlier_matmul, rule="contiguous tensors", check=_not_contiguous)
def _triton(inputs: Tensor, codes: Tensor, scale: Tensor, threshold: float) -> Tensor:
    """Both parts in one launch, after the inputs are split."""
    (rows, columns), features = inputs.shape, codes.shape[0]
    outlying, rounded, step = split_outliers(inputs, threshold)
    sizes = {"rows": rows, "features": features, "columns": columns}
    sizes["bytes"] = inputs.element_size()
    options = options_of("int8_outlier", inputs.device, **sizes)
    options["BLOCK_M"] = min(options["BLOCK_M"], max(LEAST_ROWS, power_of_two(rows)))
    outputs = inputs.new_empty((rows, features))
    launch(
        _kernel,
        (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"])),
        *(inputs, rounded.to(torch.int8), outlying.any(dim=0).to(torch.uint8)),
        *(step, codes, scale, outputs, rows, columns, features, float(threshold)),
        **options,
    )
    return outputs
