"""Product with a weight of 8-bit floating-point codes: E4M3 or E5M2, MXFP8 among them."""

from torch import Tensor

from autocomp.kernels._floats import block_product, exact_product, tile_product, why_no_tiles
from autocomp.kernels._op import operation
from autocomp.kernels._triton import triton_backend
from autocomp.kernels.float_codes import float_weight


@operation
def fp8_matmul(
    inputs: Tensor, step: Tensor | None, codes: Tensor, scale: Tensor, base: Tensor | None
) -> Tensor:
    """Multiply by a weight of 8-bit floats: ``y = t x Ŵᵀ``, ``Ŵ = base · scale · number``.

    Args:
        inputs: x (rows, in) of a floating dtype. With a step they are numbers of E4M3, which half
            precision holds exactly, and may be multiplied in 8 bits.
        step: t (rows, 1) or (1,) fp32, what the inputs are multiplied by; ``None`` is 1.
        codes: (out, in) float8_e4m3fn or float8_e5m2, without NaN and infinity.
        scale: (out, groups) float16, or uint8: powers of two, ``2^(byte − 127)``; ``in / groups``
            consecutive inputs a group.
        base: (out, 1) float16, a factor of each row; ``None`` is 1.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    return exact_product(inputs, step, float_weight(codes, scale, base, inputs.shape[1]))


@fp8_matmul.operator
def _shape(
    inputs: Tensor, step: Tensor | None, codes: Tensor, scale: Tensor, base: Tensor | None
) -> Tensor:
    return inputs.new_empty((inputs.shape[0], codes.shape[0]))


@fp8_matmul.backend("blocks", priority=1)
def _blocks(
    inputs: Tensor, step: Tensor | None, codes: Tensor, scale: Tensor, base: Tensor | None
) -> Tensor:
    """Decode a block of rows of the weight, multiply by it, forget it."""
    return block_product(inputs, step, codes, scale, base)


@triton_backend(fp8_matmul, rule="contiguous tensors", check=why_no_tiles)
def _triton(
    inputs: Tensor, step: Tensor | None, codes: Tensor, scale: Tensor, base: Tensor | None
) -> Tensor:
    """Multiply 8-bit floats as they are where inputs are such, elsewhere as halves."""
    return tile_product(inputs, step, codes, scale, base)
