"""What kernels share that decode a tile of a weight and multiply it: sums, kept values, grids.

A tile of a weight is (BLOCK_N, BLOCK_K): outputs, inputs. Of one row of inputs every element keeps
a sum of its own until the end; of more rows, tiles multiply tiles.
"""

from autocomp.kernels._decode import gather_codes
from autocomp.kernels._triton import jit, power_of_two, tl

LEAST_ROWS = 16
"""Rows of the smallest tile that tensor cores multiply."""


def block_rows(rows: int, most: int) -> int:
    """Return rows of inputs a program takes: 1, or those of a tile, at most ``most``."""
    if rows == 1:
        return 1
    block = LEAST_ROWS
    while block < min(rows, most):
        block *= 2
    return block


def block_columns(group_size: int, most: int) -> dict[str, int]:
    """Return how many columns a program takes at a time, at most ``most``, as options.

    ``BLOCK_K`` divides a group where a power of two of at least 16 does; ``WHOLE`` says so.
    """
    divisor = group_size & -group_size
    block = divisor if divisor >= 16 else max(16, power_of_two(group_size))
    block = min(block, most)
    return {"BLOCK_K": block, "WHOLE": group_size % block == 0}


def has_whole_groups(columns: int, group_size: int) -> bool:
    """Return whether rows are whole eights, and groups a power of two or whole rows."""
    regular = group_size == columns or group_size == power_of_two(group_size) >= 16
    return columns % 16 == 0 and regular


@jit
def group_block(
    block: tl.tensor, group_size: int, WHOLE: tl.constexpr, BLOCK_K: tl.constexpr
) -> tl.tensor:
    """Return the group of a block, its first column and the column that the group stops before.

    A group has ``⌈size / BLOCK_K⌉`` blocks.

    Args:
        block: Counted through all groups.
        group_size: Columns.
        WHOLE: Groups are whole blocks, so that columns are known to be multiples of BLOCK_K.
        BLOCK_K: Columns of a block.
    """
    if WHOLE:
        first = block * BLOCK_K
        group = first // group_size
    else:
        blocks = tl.cdiv(group_size, BLOCK_K)
        group = block // blocks
        first = group * group_size + block % blocks * BLOCK_K
    return group, first, (group + 1) * group_size


@jit
def no_sums(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr) -> tl.tensor:
    """Return zeros that :func:`add_product` adds to."""
    if BLOCK_M == 1:
        sums = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    else:
        sums = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    return sums


@jit
def add_product(
    sums: tl.tensor,
    weight: tl.tensor,
    inputs: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    rows: int,
    columns: int,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """Return the sums with those of a tile of the weight.

    Args:
        sums: Of :func:`no_sums`.
        weight: (BLOCK_N, BLOCK_K) fp32, 0 where there is none.
        inputs: Pointer to (rows, columns).
        column: (BLOCK_K,), which inputs the tile multiplies.
        inside: (BLOCK_K,), whether there is such an input.
        rows: Rows of inputs.
        columns: Inputs of a row.
        BLOCK_M: Rows that a program takes.
    """
    if BLOCK_M == 1:
        value = tl.load(inputs + column, mask=inside, other=0.0).to(tl.float32)
        sums += weight * value[None, :]
    else:
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        places = inputs + m[None, :].to(tl.int64) * columns + column[:, None]
        values = tl.load(places, mask=inside[:, None] & (m < rows)[None, :], other=0.0)
        sums += tl.dot(weight.to(values.dtype), values, input_precision="ieee")
    return sums


@jit
def write_sums(
    sums: tl.tensor,
    outputs: tl.tensor,
    n: tl.tensor,
    rows: int,
    features: int,
    BLOCK_M: tl.constexpr,
) -> None:
    """Write the sums of outputs ``n`` (BLOCK_N,) to (rows, features)."""
    if BLOCK_M == 1:
        found = tl.sum(sums, axis=1)
        tl.store(outputs + n, found.to(outputs.dtype.element_ty), mask=n < features)
    else:
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        places = outputs + m[None, :].to(tl.int64) * features + n[:, None]
        keep = (n < features)[:, None] & (m < rows)[None, :]
        tl.store(places, sums.to(outputs.dtype.element_ty), mask=keep)


@jit
def kept_values(
    values: tl.tensor, start: tl.tensor, rank: tl.tensor, keep: tl.tensor, BITS: tl.constexpr
) -> tl.tensor:
    """Return values or codes of one string that runs through all rows of a weight, fp32.

    Args:
        values: Pointer to values of a floating dtype, or to packed codes.
        start: (BLOCK_N,) int64, how many come before each row.
        rank: (BLOCK_N, BLOCK_K), which one of the row.
        keep: Where to read; elsewhere it is 0.
        BITS: Bits a code; 0 of values.
    """
    if BITS == 0:
        found = tl.load(values + start[:, None] + rank, mask=keep, other=0.0).to(tl.float32)
    else:
        # Eight codes fill whole bytes, so a string of them can begin at any eighth.
        places = values + (start // 8 * BITS)[:, None]
        skip = (start % 8).to(tl.int32)[:, None]
        found = gather_codes(places, skip + rank, keep, BITS).to(tl.float32)
    return found


@jit
def on_grid(
    codes: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    n: tl.tensor,
    group: tl.tensor,
    groups: int,
    live: tl.tensor,
    BITS: tl.constexpr,
) -> tl.tensor:
    """Return ``scale · (code − zero)`` of codes (BLOCK_N, BLOCK_K) that lie in one group, fp32.

    Args:
        codes: fp32.
        scale: Pointer to (out, groups); ``None`` returns the codes as they are.
        zero: Pointer to packed zero points; ``None`` is ``2^(bits−1)``.
        n: (BLOCK_N,) int64, the rows.
        group: The group.
        groups: Groups of a row.
        live: (BLOCK_N,), whether there is such a row.
        BITS: Bits a code.
    """
    if scale is not None:
        step = tl.load(scale + n * groups + group, mask=live, other=0.0).to(tl.float32)
        if zero is None:
            codes -= 1 << (BITS - 1)
        else:
            here = tl.zeros_like(n).to(tl.int32) + group
            starts = zero + n * ((groups * BITS + 7) // 8)
            codes -= gather_codes(starts, here, live, BITS).to(tl.float32)[:, None]
        codes *= step[:, None]
    return codes


@jit
def spread(
    one: tl.tensor,
    two: tl.tensor,
    three: tl.tensor,
    four: tl.tensor,
    five: tl.tensor,
    six: tl.tensor,
    seven: tl.tensor,
    eight: tl.tensor,
) -> tl.tensor:
    """Return eight parts (n, k) in turns, (n, 8k); each thread keeps what it has."""
    odd = tl.interleave(tl.interleave(one, five), tl.interleave(three, seven))
    even = tl.interleave(tl.interleave(two, six), tl.interleave(four, eight))
    return tl.interleave(odd, even)
