"""Product with a dense weight, stored or just decoded."""

from torch import Tensor
from torch.nn.functional import linear

from autocomp.kernels._machine import emulates, lacks_half_products
from autocomp.kernels._op import operation


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
