"""Product with 4-bit codes in the layout that torch's processor kernel reads.

A tile holds some rows of the weight (:func:`tile_rows`), input by input: byte ``d`` of an input
has the code of row ``d`` in its low half and that of row ``d + rows/2`` in its high half. So the
layout is a permutation of the stored codes: tiles take their place, at the same size, and give
them back. Scales stay as they are, and zero points become offsets ``8 − z``, a byte each. A call
makes the pairs ``(s, (8 − z) s)`` of them that the kernel reads, for ``(q − 8) s + (8 − z) s``.
"""

import functools

import torch
from torch import Tensor

from autocomp.kernels._machine import SMALL_BATCH, lacks_packed_bf16, not_a_small_batch
from autocomp.kernels._op import operation
from autocomp.kernels.bits import pack_bits, unpack_bits
from autocomp.kernels.dense_matmul import by_blocks, dense_matmul
from autocomp.kernels.dequantize import on_grid

GROUP_SIZES = (32, 64, 128, 256)
"""Inputs that may share a scale."""

MULTIPLE = 64
"""What the rows of the weight are a multiple of: whole tiles on every processor."""

# The kernel packs 32-bit integers: half a MiB at a time, so that loading leaves no large holes.
_CODES_AT_ONCE = 1 << 17


@functools.cache
def tile_rows() -> int:
    """Return the rows of a tile, found by packing known codes; 0 if the layout is unknown."""
    codes = torch.randint(0, 16, (MULTIPLE, 32), generator=torch.Generator().manual_seed(0))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    for rows in (64, 32):
        if torch.equal(_codes(packed, rows), codes.to(torch.uint8)):
            return rows
    return 0


@functools.cache
def lacks_tiles() -> str | None:
    """Return why this machine has no fast product with tiles."""
    if reason := lacks_packed_bf16():
        return reason
    return None if tile_rows() else "torch packs 4-bit weights in a layout that is not known here"


def why_no_tiles(
    shape: tuple[int, int], bits: int, group_size: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Return why a weight does not go into tiles; ``None`` when it does.

    Args:
        shape: (out, in).
        bits: Bits a code.
        group_size: Inputs that share a scale.
        dtype: Dtype of the inputs.
        device: Where the weight lies.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return f"requires bfloat16 inputs on cpu, got {dtype} on {device.type}"
    if bits != 4 or group_size not in GROUP_SIZES:
        return f"takes 4 bits and groups of {GROUP_SIZES}, got {bits} bits, groups of {group_size}"
    if shape[0] % MULTIPLE:
        return f"takes outputs divisible by {MULTIPLE}, got {shape[0]}"
    return lacks_tiles()


def to_tiles(codes: Tensor) -> Tensor:
    """Return the tiles, (out, in/2) uint8, of packed codes that :func:`why_no_tiles` accepts."""
    columns = codes.shape[1] * 2
    step = max(1, _CODES_AT_ONCE // columns // MULTIPLE) * MULTIPLE
    tiles = torch.empty_like(codes)
    for start in range(0, codes.shape[0], step):
        part = slice(start, start + step)
        wide = unpack_bits(codes[part], 4, columns).to(torch.int32)
        tiles[part] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(wide, 1)
    return tiles


def from_tiles(tiles: Tensor) -> Tensor:
    """Return the packed codes, (out, in/2) uint8, to the bit."""
    return pack_bits(_codes(tiles, tile_rows()), 4)


def to_offset(zero: Tensor, groups: int) -> Tensor:
    """Return ``8 − zero``, (out, groups) int8, of packed zero points (out, ceil(groups/2))."""
    return 8 - unpack_bits(zero, 4, groups).to(torch.int8)


def from_offset(offset: Tensor) -> Tensor:
    """Return the packed zero points (out, ceil(groups/2)) uint8, to the bit."""
    return pack_bits(8 - offset, 4)


def on_offset_grid(codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Return ``scale · (code − 8 + offset)``, (n, in) fp32.

    Args:
        codes: (n, in) uint8.
        scale: (n, groups) fp16.
        offset: (n, groups) int8, or ``None`` for 0.
    """
    wide = scale.to(torch.float32)
    zero = torch.full_like(wide, 8.0)
    return on_grid(codes, wide, zero if offset is None else zero - offset)


def tile_codes(tiles: Tensor) -> Tensor:
    """Return the codes (out, in) uint8."""
    return _codes(tiles, tile_rows())


def tile_code_rows(tiles: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of the codes, (n, in) uint8, for integer ``rows`` (n,)."""
    height = tile_rows()
    half = height // 2
    bytes_ = tiles.view(tiles.shape[0] // height, -1, half)
    place = rows % height
    found = bytes_[rows // height, :, place % half]
    return torch.where((place < half)[:, None], found & 15, found >> 4)


def _codes(tiles: Tensor, height: int) -> Tensor:
    """Return the codes (out, in) uint8 of tiles of so many rows."""
    grouped = tiles.view(tiles.shape[0] // height, -1, height // 2)
    both = torch.cat([grouped & 15, grouped >> 4], dim=-1)
    return both.transpose(1, 2).reshape(tiles.shape[0], -1)


@operation
def int4_tile_matmul(
    inputs: Tensor, tiles: Tensor, scale: Tensor, offset: Tensor | None
) -> Tensor:
    """Multiply by a 4-bit weight in tiles: ``y = x Ŵᵀ``, ``Ŵ = scale · (code − 8 + offset)``.

    Args:
        inputs: (rows, in) of a floating dtype.
        tiles: (out, in/2) uint8.
        scale: (out, groups) fp16.
        offset: (out, groups) int8, ``8 − zero``; ``None`` is 0 everywhere.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    return dense_matmul(inputs, on_offset_grid(tile_codes(tiles), scale, offset))


@int4_tile_matmul.backend("blocks", priority=1)
def _blocks(inputs: Tensor, tiles: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Decode some tiles of the weight, multiply by them, forget them."""

    def multiply(part: slice) -> Tensor:
        offsets = None if offset is None else offset[part]
        weight = on_offset_grid(tile_codes(tiles[part]), scale[part], offsets)
        return dense_matmul(inputs, weight)

    return by_blocks(inputs, tiles.shape[0], multiply, MULTIPLE)


def _too_many(inputs: Tensor, tiles: Tensor, scale: Tensor, offset: Tensor | None) -> str | None:
    """Return why the rows are better multiplied by the decoded weight."""
    return not_a_small_batch(inputs.shape[0])


@int4_tile_matmul.backend(
    "int4pack",
    priority=10,
    devices=("cpu",),
    dtypes=("bfloat16",),
    rule=f"groups of {GROUP_SIZES}, out % {MULTIPLE} = 0, at most {SMALL_BATCH} rows",
    requires=lacks_tiles,
    check=_too_many,
)
def _int4pack(inputs: Tensor, tiles: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Multiply by the tiles themselves, ``aten._weight_int4pack_mm_for_cpu``.

    Scales, and their products with offsets, are rounded to bf16.
    """
    rows, groups = scale.shape
    pairs = inputs.new_zeros((groups, rows, 2))
    pairs[..., 0] = scale.T
    if offset is not None:
        torch.mul(pairs[..., 0], offset.T, out=pairs[..., 1])
    found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        inputs, tiles, inputs.shape[1] // groups, pairs
    )
    return found
