"""Bit packing: small unsigned codes, back to back, little-endian, row by row.

Code ``j`` of a row occupies the bits ``j·bits … (j+1)·bits − 1`` of that row's byte string, bit 0
being the lowest bit of the first byte; a row ends on a whole byte. Eight codes of ``b`` bits fill
``b`` bytes, so both directions work on 64-bit words of eight codes and move halves, quarters and
eighths of a word between dense and byte-wide lanes: three steps whatever the width.
"""

import torch
from torch import Tensor

from autocomp.kernels._op import operation

# A million codes: a call of torch costs as much as the work on some 100,000 of them.
_CHUNK_WORDS = 1 << 17


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of a row of ``count`` codes: ``ceil(count · bits / 8)``."""
    return (count * bits + 7) // 8


@operation
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
    words = lanes.view(-1).view(torch.int64)
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


@operation
def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack codes; the inverse of ``pack_bits``.

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
    if bits in _SPREADS:
        return _spread(packed, bits, count)
    blocks = -(-count // 8)
    source = torch.nn.functional.pad(packed, (0, blocks * bits - row_bytes)).reshape(-1, bits)
    words = torch.zeros(rows * blocks, dtype=torch.int64, device=packed.device)
    for start in range(0, words.numel(), _CHUNK_WORDS):
        word = words[start : start + _CHUNK_WORDS]
        lanes = word.view(torch.uint8).view(-1, 8)
        for lane in range(bits):
            lanes[:, lane] = source[start : start + _CHUNK_WORDS, lane]
        for width in (4, 2, 1):
            low = _mask(width * bits, 16 * width)
            high = (word >> (width * bits)).bitwise_and_(low)
            word.bitwise_and_(low).bitwise_or_(high.bitwise_left_shift_(8 * width))
    return words.view(torch.uint8).view(rows, 8 * blocks)[:, :count].contiguous()


_SPREADS: dict[int, tuple[torch.dtype, tuple[tuple[int, int], ...]]] = {
    2: (torch.int32, ((12, 0x000F000F), (6, 0x03030303))),
    4: (torch.int16, ((4, 0x0F0F),)),
}
"""Bits whose codes fill a byte: the lanes that a byte becomes, and the shifts that part them."""


def _spread(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack codes that do not cross bytes, byte by byte."""
    dtype, steps = _SPREADS[bits]
    flat = packed.reshape(-1)
    lanes = torch.empty(flat.numel(), dtype=dtype, device=packed.device)
    step = _CHUNK_WORDS * bits
    for start in range(0, flat.numel(), step):
        lane = lanes[start : start + step].copy_(flat[start : start + step])
        for shift, mask in steps:
            lane.bitwise_or_(lane << shift).bitwise_and_(mask)
    return lanes.view(torch.uint8).view(packed.shape[0], -1)[:, :count].contiguous()


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
