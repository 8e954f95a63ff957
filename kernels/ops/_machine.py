"""What this machine can do: asked once, told as what is missing."""

import functools
import platform

import torch

X86 = ("x86_64", "amd64")
SMALL_BATCH = 16
"""Rows of input up to which a product with packed weights beats decoding them first.

Measured on AVX2 (``studies/packed-runtime``): the packed product's time grows with every row,
decoding costs as much as some 16 rows of it, and the dense product after it costs little.
"""


def not_a_small_batch(rows: int) -> str | None:
    """Return why a product with packed weights is not the fastest for so many rows of input."""
    if 1 <= rows <= SMALL_BATCH:
        return None
    return f"takes 1 to {SMALL_BATCH} rows, more are faster decoded first, got {rows}"


@functools.cache
def lacks_packed_bf16() -> str | None:
    """Return why torch's bf16 products with packed weights are not fast here."""
    level = torch.backends.cpu.get_cpu_capability()
    if platform.machine().lower() not in X86 or level not in ("AVX2", "AVX512"):
        return f"requires x86 with AVX2 or AVX512, this processor gives torch {level}"
    return None


@functools.cache
def lacks_int8_products() -> str | None:
    """Return why torch's int8 × int8 products are not fast here.

    Without VNNI they are scalar: 2.5 GOP/s where fp32 reaches 70 GFLOP/s.
    """
    if not torch.cpu._is_vnni_supported():
        return "requires VNNI; without it torch's int8 product is scalar, slower than fp32"
    return None


@functools.cache
def _multiplies_bf16() -> bool:
    """Return whether the processor has products of bf16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@functools.cache
def lacks_half_products() -> str | None:
    """Return why nothing here multiplies in half precision."""
    if torch.cuda.is_available() or _multiplies_bf16():
        return None
    return "requires cuda, or a processor with AVX512-BF16 or AMX"


@functools.cache
def emulates(dtype: torch.dtype, device: str) -> str | None:
    """Return why products in half precision are slower than fp32 ones.

    Processors without instructions for a dtype emulate it, up to eight times as slowly.

    Args:
        dtype: ``float16`` or ``bfloat16``.
        device: Type of the device.
    """
    if device != "cpu":
        return None
    if dtype == torch.bfloat16 and _multiplies_bf16():
        return None
    return f"this processor emulates {str(dtype).removeprefix('torch.')} products"
