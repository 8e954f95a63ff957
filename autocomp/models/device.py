"""Which device and which dtype a body runs in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autocomp.core.errors import ConfigError


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA when there is one, else the processor.

    Raises:
        ConfigError: If the name is no device or the device is absent.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"unknown device {device!r}; use auto, cpu, cuda or cuda:<index>."
        ) from error
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device {device!r} is not supported; use auto, cpu, cuda or cuda:<index>."
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r} is absent: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use cpu or auto."
        )
    return found


def memory_bytes(device: torch.device) -> int:
    """Return the memory that a device has in all, bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def body_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for forward passes: bf16 where the hardware multiplies it, else fp32."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name; ``auto`` is :func:`body_dtype`.

    Raises:
        ConfigError: If the name is none of ``auto``, ``float32``, ``bfloat16``.
    """
    if name == "auto":
        return body_dtype(device)
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"unknown dtype {name!r}; use auto, float32 or bfloat16.")
    found: torch.dtype = getattr(torch, name)
    return found


@contextmanager
def bf16_products(dtype: torch.dtype) -> Iterator[None]:
    """Let fp32 matrix products round their inputs to bf16 (TF32 on CUDA) while the context lasts.

    Products of tensors that already hold bf16 values lose nothing by it: sums and results stay
    fp32. It is twice as fast or more where the hardware multiplies bf16.

    Args:
        dtype: Dtype that the inputs came from; anything but bf16 leaves products as they are.
    """
    if dtype != torch.bfloat16:
        yield
        return
    processor = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    cuda = torch.backends.cuda.matmul
    before = processor.fp32_precision, cuda.fp32_precision
    processor.fp32_precision, cuda.fp32_precision = "bf16", "tf32"
    try:
        yield
    finally:
        processor.fp32_precision, cuda.fp32_precision = before
