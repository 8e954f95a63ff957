"""Bit packing: small unsigned codes, back to back, little-endian, row by row.

Code ``j`` of a row occupies the bits ``j·bits … (j+1)·bits − 1`` of that row's byte string, bit 0
being the lowest bit of the first byte; a row ends on a whole byte. Eight codes of ``b`` bits fill
``b`` bytes, so both directions work on 64-bit words of eight codes and move halves, quarters and
eighths of a word between dense and byte-wide lanes: three steps whatever the width.
"""

import torch
from torch import Tensor

# 32 KiB of codes: in cache, and below the size at which torch starts threads, which cost more than
# they gain when several processes share the cores.
_CHUNK_WORDS = 1 << 12


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of a row of ``count`` codes: ``ceil(count · bits / 8)``."""
    return (count * bits + 7) // 8


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes.

    Args:
        codes: (rows, n), any integer dtype, values in ``0 … 2^bits − 1``.
        bits: Bits a code, 1 to 8.

    Returns:
        (rows, ceil(n·bits/8)) uint8.

    Raises:
        ValueError: If ``bits`` or a code is out of range, or ``codes`` is not a matrix.
    """
    _check(codes, bits)
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >> bits):
        raise ValueError(
            f"codes of {bits} bits must lie in 0..{2**bits - 1}, "
            f"got {int(codes.min())}..{int(codes.max())}"
        )
    rows, count = codes.shape
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes.clone()
    blocks = -(-count // 8)
    lanes = torch.nn.functional.pad(codes, (0, 8 * blocks - count)).contiguous()
    words = lanes.view(torch.int64).view(-1)
    packed = torch.empty((rows * blocks, bits), dtype=torch.uint8, device=codes.device)
    for start in range(0, words.numel(), _CHUNK_WORDS):
        word = words[start : start + _CHUNK_WORDS].clone()
        for width in (1, 2, 4):
            low = _mask(width * bits, 16 * width)
            high = (word >> (8 * width)) & low
            word &= low
            word |= high << (width * bits)
        packed[start : start + _CHUNK_WORDS] = word.view(torch.uint8).view(-1, 8)[:, :bits]
    return packed.view(rows, blocks * bits)[:, : packed_bytes(count, bits)].contiguous()


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack codes; the inverse of :func:`pack_bits`.

    Args:
        packed: (rows, ceil(count·bits/8)) uint8.
        bits: Bits a code, 1 to 8.
        count: Codes a row.

    Returns:
        (rows, count) uint8.

    Raises:
        ValueError: If ``bits`` is out of range or the shape does not belong to ``count`` codes.
    """
    _check(packed, bits)
    rows, row_bytes = packed.shape
    if packed.dtype != torch.uint8 or row_bytes != packed_bytes(count, bits):
        raise ValueError(
            f"{count} codes of {bits} bits need rows of {packed_bytes(count, bits)} uint8, "
            f"got rows of {row_bytes} {packed.dtype}"
        )
    if bits == 8:
        return packed.clone()
    blocks = -(-count // 8)
    source = torch.nn.functional.pad(packed, (0, blocks * bits - row_bytes)).reshape(-1, bits)
    words = torch.zeros(rows * blocks, dtype=torch.int64, device=packed.device)
    for start in range(0, words.numel(), _CHUNK_WORDS):
        word = words[start : start + _CHUNK_WORDS]
        word.view(torch.uint8).view(-1, 8)[:, :bits] = source[start : start + _CHUNK_WORDS]
        for width in (4, 2, 1):
            low = _mask(width * bits, 16 * width)
            high = (word >> (width * bits)) & low
            word &= low
            word |= high << (8 * width)
    return words.view(torch.uint8).view(rows, 8 * blocks)[:, :count].contiguous()


def _mask(ones: int, period: int) -> int:
    """Return the 63-bit pattern with ``ones`` low bits set in every ``period`` bits."""
    lane = (1 << ones) - 1
    return sum(lane << offset for offset in range(0, 64, period))


def _check(matrix: Tensor, bits: int) -> None:
    """Check what both directions ask of their arguments."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must lie in 1..8, got {bits}")
    if matrix.dim() != 2:
        raise ValueError(f"expected a matrix (rows, n), got shape {tuple(matrix.shape)}")
