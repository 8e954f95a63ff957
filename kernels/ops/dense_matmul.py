"""Product with a dense weight, stored or just decoded, whole or a block of rows at a time."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import linear

from autocomp.kernels._machine import emulates, lacks_half_products
from autocomp.kernels._op import operation

BLOCK_WEIGHTS = 1 << 20
"""Weights decoded at a time, 4 MiB of fp32."""


@operation
def dense_matmul(inputs: Tensor, weight: Tensor) -> Tensor:
    """Multiply by a dense weight in fp32: ``y = x Wᵀ``.

    Args:
        inputs: (rows, in) of a floating dtype.
        weight: (out, in) of a floating dtype.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    return linear(inputs.float(), weight.float()).to(inputs.dtype)


def _emulated(inputs: Tensor, weight: Tensor) -> str | None:
    """Return why half precision does not pay here."""
    return emulates(inputs.dtype, inputs.device.type)


@dense_matmul.backend(
    "half",
    priority=10,
    dtypes=("float16", "bfloat16"),
    rule="where the hardware multiplies the dtype",
    requires=lacks_half_products,
    check=_emulated,
)
def _half(inputs: Tensor, weight: Tensor) -> Tensor:
    """Multiply in the dtype of the inputs."""
    return linear(inputs, weight.to(inputs.dtype))


def by_blocks(
    inputs: Tensor, out_features: int, multiply: Callable[[slice], Tensor], multiple: int = 1
) -> Tensor:
    """Multiply by a weight of which one block of rows at a time is decoded and forgotten.

    Args:
        inputs: (rows, in) of a floating dtype.
        out_features: Rows of the weight.
        multiply: Returns the product with some rows of the weight, (rows, n).
        multiple: What the rows of a block are a multiple of.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    rows, columns = inputs.shape
    step = max(1, BLOCK_WEIGHTS // columns // multiple) * multiple
    if step >= out_features:
        return multiply(slice(0, out_features))
    outputs = inputs.new_empty((rows, out_features))
    for start in range(0, out_features, step):
        part = slice(start, start + step)
        outputs[:, part] = multiply(part)
    return outputs
