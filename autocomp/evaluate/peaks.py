"""The two peak figures of this machine, measured: the device that rooflines of it are of."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from autocomp.cost.device import Device
from autocomp.evaluate.record import hardware

MEMORY_BYTES = 256 * 2**20
PRODUCT_SIZE = 1536
TRIES = 6


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Device:
    """Return this machine as a device, at the best of some tries.

    The bandwidth is the larger of that of a copy, ``2 n / t`` for n bytes read and written, and
    that of a sum, ``n / t``; the peak is that of a square matrix product, ``2 m³ / t``.

    Args:
        device: Where to measure.
        dtype: Of the products: the compute dtype.
    """
    source = torch.ones(MEMORY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * MEMORY_BYTES / _fastest(lambda: target.copy_(source))
    summed = MEMORY_BYTES / _fastest(lambda: source.sum())
    factor = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=device).to(dtype)
    product = 2 * PRODUCT_SIZE**3 / _fastest(lambda: factor @ factor)
    name = str(dtype).removeprefix("torch.")
    return Device(
        name=hardware(device),
        memory_bandwidth_bytes_per_s=float(f"{max(copied, summed):.4g}"),
        peak_flops_per_s=float(f"{product:.4g}"),
        source=(
            f"measured by autocomp bench --calibrate, best of {TRIES}: copy {copied / 1e9:.4g} "
            f"and sum {summed / 1e9:.4g} GB/s of {MEMORY_BYTES >> 20} MiB, {name} product of "
            f"{PRODUCT_SIZE} × {PRODUCT_SIZE} matrices {product / 1e9:.4g} GFLOP/s"
        ),
    )


def _fastest(call: Callable[[], Tensor]) -> float:
    """Return the shortest time of a call, seconds."""
    best = math.inf
    for _ in range(TRIES):
        begun = time.perf_counter()
        found = call()
        found.flatten()[0].item()
        best = min(best, time.perf_counter() - begun)
    return best
