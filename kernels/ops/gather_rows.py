"""Rows of a packed table, decoded without the rest of it."""

from torch import Tensor

from autocomp.kernels._op import operation
from autocomp.kernels.dequantize import dequantize
from autocomp.kernels.int4_tile_matmul import on_offset_grid, tile_code_rows


@operation
def gather_rows(
    rows: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, columns: int
) -> Tensor:
    """Decode some rows of a table on a uniform grid.

    Args:
        rows: (n,) integers.
        codes: (out, ceil(columns·bits/8)) uint8.
        scale: (out, groups) fp16.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code, 1 to 8.
        columns: Codes a row.

    Returns:
        (n, columns) fp32.
    """
    zeros = None if zero is None else zero[rows]
    return dequantize(codes[rows], scale[rows], zeros, bits, columns)


def gather_tile_rows(rows: Tensor, tiles: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Decode some rows of a 4-bit table in tiles; see ``int4_tile_matmul`` for the layout.

    Args:
        rows: (n,) integers.
        tiles: (out, in/2) uint8.
        scale: (out, groups) fp16.
        offset: (out, groups) int8, or ``None``.

    Returns:
        (n, in) fp32.
    """
    offsets = None if offset is None else offset[rows]
    return on_offset_grid(tile_code_rows(tiles, rows), scale[rows], offsets)
