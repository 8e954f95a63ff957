"""Decode speed of a random model with the shapes of Llama 3 8B: its linears, in one CUDA graph."""

from collections.abc import Callable

import torch
import triton.testing
from _case import codes, values
from torch import Tensor

from autocomp.core.registry import KERNELS

LAYERS, GROUP = 32, 128
LINEARS = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
"""(out, in) of a block: queries, keys and values; output; gate and up; down."""


def tokens_per_second() -> dict[str, float]:
    """Return tokens a second of one sequence, with 4-bit weights and with dense bf16 ones.

    Norms, attention and activations are left out: what is compared is what weights cost.
    """
    return {
        "llama-3-8b linears, 4 bits, groups of 128": _speed(_packed, torch.float16),
        "llama-3-8b linears, dense": _speed(_dense, torch.bfloat16),
    }


def _packed(features: int, columns: int) -> Callable[[Tensor], Tensor]:
    """Return a product with random 4-bit codes."""
    weight = codes((features, columns), 4, "cuda")
    scale = values(features, columns // GROUP, device="cuda").abs() / 1000
    return lambda x: KERNELS["weight_only_matmul"](x, weight, scale, None, 4)


def _dense(features: int, columns: int) -> Callable[[Tensor], Tensor]:
    """Return a product with random bf16 weights."""
    weight = torch.randn(features, columns, device="cuda", dtype=torch.bfloat16)
    return lambda x: torch.nn.functional.linear(x, weight)


def _speed(linear: Callable[[int, int], Callable[[Tensor], Tensor]], dtype: torch.dtype) -> float:
    """Return tokens a second of all blocks."""
    layers = [[linear(*shape) for shape in LINEARS] for _ in range(LAYERS)]
    inputs = {shape[1]: values(1, shape[1], device="cuda", dtype=dtype) for shape in LINEARS}

    def step() -> None:
        for block in layers:
            for shape, multiply in zip(LINEARS, block, strict=True):
                multiply(inputs[shape[1]])

    milliseconds = triton.testing.do_bench_cudagraph(step, rep=200, return_mode="median")
    return 1e3 / float(milliseconds)
