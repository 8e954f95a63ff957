"""Bench of the product with two factors: fp16 and 8 bits, an eighth and a quarter of the rank."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values
from torch import Tensor

from autocomp.kernels._triton import Launch
from autocomp.kernels.low_rank_matmul import Packed


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over decode, 1 and 16 rows."""
    for shape in FEW if quick else SHAPES:
        for rank in (64, min(shape.features, shape.columns) // 8):
            for rows in (1, 16):
                inputs = values(rows, shape.columns, device=device, dtype=dtype)
                for bits in (0, 8):
                    left = _factor(shape.features, rank, bits, device)
                    right = _factor(rank, shape.columns, bits, device)
                    yield product(
                        f"{shape.name}, {rows} rows, rank {rank}, {bits or 'fp16'} bits",
                        (inputs, left, right),
                        shape.features,
                        *_tensors(left, right),
                    )


def _factor(rows: int, columns: int, bits: int, device: str) -> Tensor | Packed:
    if bits == 0:
        return values(rows, columns, device=device)
    return Packed(codes((rows, columns), bits, device), values(rows, 1, device=device), None, bits)


def _tensors(*factors: Tensor | Packed) -> list[Tensor]:
    """Return the tensors that are not arguments themselves."""
    return [t for f in factors if isinstance(f, Packed) for t in f if isinstance(t, Tensor)]


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for.

    Every share of the outputs reads the right factor, every block of the inner dimension its part
    of the left one; all read the inputs. Parts of the outputs are written, and read to be added.
    """
    inputs, left, left_scale, left_zero, right, right_scale, right_zero, outputs = (
        launch.arguments[:8]
    )
    once = [t for t in (left, left_scale, left_zero) if t is not None]
    again = [t for t in (right, right_scale, right_zero) if t is not None]
    shares, split = launch.grid
    moved = sum(t.nbytes for t in once) + split * sum(t.nbytes for t in again)
    written = outputs.nbytes * (2 if outputs.dtype == torch.float32 else 1)
    return int(moved + inputs.nbytes * shares * split + written)
