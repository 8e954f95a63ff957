"""Packed codes inside Triton kernels: read as they are stored, little-endian and row by row."""

from autocomp.kernels._triton import jit, tl


def whole_bytes(group_size: int, bits: int) -> bool:
    """Return whether bytes hold whole codes, and groups of them whole bytes."""
    return bits > 0 and 8 % bits == 0 and group_size * bits % 8 == 0


@jit
def gather_codes(
    starts: tl.tensor, columns: tl.tensor, keep: tl.tensor, BITS: tl.constexpr
) -> tl.tensor:
    """Return codes at any columns, int32; each reads the byte, or the two bytes, that hold it.

    Args:
        starts: Pointers to the first byte of each row, uint8, that broadcast with ``columns``.
        columns: Which codes of the row.
        keep: Where to read; elsewhere the code is 0.
        BITS: Bits a code, 1 to 8.
    """
    bit = columns * BITS
    first = starts + (bit >> 3)
    shift = bit & 7
    found = tl.load(first, mask=keep, other=0).to(tl.int32) >> shift
    if 8 % BITS != 0:
        crosses = keep & (shift + BITS > 8)
        found |= tl.load(first + 1, mask=crosses, other=0).to(tl.int32) << (8 - shift)
    return found & ((1 << BITS) - 1)


@jit
def byte_codes(packed: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Return codes (n, k) int32 of bytes (n, k·bits/8) uint8, for 1, 2, 4 or 8 bits.

    Every thread keeps the codes of the bytes that it has read: nothing is exchanged.
    """
    wide = packed.to(tl.int32)
    if BITS == 4:
        wide = tl.interleave(wide & 15, wide >> 4)
    elif BITS == 2:
        even = tl.interleave(wide & 3, (wide >> 4) & 3)
        odd = tl.interleave((wide >> 2) & 3, wide >> 6)
        wide = tl.interleave(even, odd)
    elif BITS == 1:
        one = tl.interleave(wide & 1, (wide >> 4) & 1)
        two = tl.interleave((wide >> 1) & 1, (wide >> 5) & 1)
        three = tl.interleave((wide >> 2) & 1, (wide >> 6) & 1)
        four = tl.interleave((wide >> 3) & 1, wide >> 7)
        wide = tl.interleave(tl.interleave(one, three), tl.interleave(two, four))
    return wide


@jit
def block_codes(
    starts: tl.tensor,
    first: tl.tensor,
    stop: tl.tensor,
    live: tl.tensor,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """Return BLOCK_K consecutive codes of rows, (n, BLOCK_K) int32, 0 where there is none.

    Args:
        starts: Pointers to the first byte of each row (n, 1), uint8.
        first: The first column.
        stop: The column to stop before.
        live: (n,), whether there is such a row.
        BITS: Bits a code, 1 to 8.
        BYTES: Both columns are whole bytes, of 1, 2, 4 or 8 codes: they are read as such.
        WHOLE: The block ends before ``stop``: nothing but ``live`` has to be masked.
        BLOCK_K: Codes of a row.
    """
    if BYTES:
        many: tl.constexpr = 8 // BITS
        byte = first // many + tl.arange(0, BLOCK_K // many)
        keep = live[:, None] if WHOLE else live[:, None] & (byte < stop // many)[None, :]
        code = byte_codes(tl.load(starts + byte[None, :], mask=keep, other=0), BITS)
    else:
        column = first + tl.arange(0, BLOCK_K)
        keep = live[:, None] & (column < stop)[None, :]
        code = gather_codes(starts, column[None, :], keep, BITS)
    return code


@jit
def unit_words(
    starts: tl.tensor, units: tl.tensor, keep: tl.tensor, BITS: tl.constexpr
) -> tl.tensor:
    """Return the words that hold the codes of units, two (n, units) uint32, perhaps the same.

    A unit is eight codes, which fill ``bits`` whole bytes; of 8-bit codes it is four.

    Args:
        starts: Pointers to the first byte of each row (n, 1), uint8; a multiple of four bytes
            for 4 and 8 bits, of two for 2 and 6.
        units: Which units of the row (1, units).
        keep: Where to read, (n, units); ``None`` is everywhere.
        BITS: Bits a code: 2, 3, 4, 5, 6 or 8.
    """
    if BITS == 4 or BITS == 8:
        low = read_word(tl.cast(starts, tl.pointer_type(tl.uint32)) + units, keep)
        high = low
    elif BITS == 2:
        low = read_word(tl.cast(starts, tl.pointer_type(tl.uint16)) + units, keep)
        high = low
    elif BITS == 6:
        halves = tl.cast(starts, tl.pointer_type(tl.uint16)) + units * 3
        middle = read_word(halves + 1, keep)
        low = read_word(halves, keep) | (middle << 16)
        high = middle | (read_word(halves + 2, keep) << 16)
    else:
        places = starts + units * BITS
        middle = read_word(places + 1, keep) | (read_word(places + 2, keep) << 8)
        low = read_word(places, keep) | (middle << 8)
        high = low
        if BITS == 5:
            third = read_word(places + 3, keep)
            low |= third << 24
            high = middle | (third << 16) | (read_word(places + 4, keep) << 24)
    return low, high


@jit
def read_word(places: tl.tensor, keep: tl.tensor) -> tl.tensor:
    """Return what is stored there as uint32, 0 where nothing is read."""
    found = tl.load(places) if keep is None else tl.load(places, mask=keep, other=0)
    return found.to(tl.uint32)


@jit
def place_code(
    low: tl.tensor, high: tl.tensor, PLACE: tl.constexpr, BITS: tl.constexpr
) -> tl.tensor:
    """Return one code of every unit, fp32, times the power of two of its place in the word.

    It is masked where it lies, which saves shifting it down; :func:`unit_vectors` undoes it.
    """
    MASK: tl.constexpr = (1 << BITS) - 1
    if PLACE * BITS + BITS <= 32:
        found = low & (MASK << (PLACE * BITS))
    else:
        found = high & (MASK << (PLACE * BITS - 8 * (BITS - 4)))
    return found.to(tl.float32)


@jit
def unit_vectors(values: tl.tensor, columns: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Return the inputs of each place of a unit, a tuple of (units,), for :func:`place_code`.

    Args:
        values: (k,) fp32.
        columns: (k,), which inputs they are.
        BITS: Bits a code.
    """
    bit = columns % (4 if BITS == 8 else 8) * BITS
    shift = tl.where(bit + BITS <= 32, bit, bit - 8 * (BITS - 4))
    return apart(values * tl.exp2(-shift.to(tl.float32)), BITS)


@jit
def apart(values: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Return the values (k,) of each place of a unit, a tuple of (units,)."""
    even, odd = tl.split(tl.reshape(values, (values.shape[0] // 2, 2)))
    even, even2 = tl.split(tl.reshape(even, (even.shape[0] // 2, 2)))
    odd, odd2 = tl.split(tl.reshape(odd, (odd.shape[0] // 2, 2)))
    if BITS == 8:
        found: tl.tensor = (even, odd, even2, odd2)
    else:
        first, fifth = tl.split(tl.reshape(even, (even.shape[0] // 2, 2)))
        second, sixth = tl.split(tl.reshape(odd, (odd.shape[0] // 2, 2)))
        third, seventh = tl.split(tl.reshape(even2, (even2.shape[0] // 2, 2)))
        fourth, eighth = tl.split(tl.reshape(odd2, (odd2.shape[0] // 2, 2)))
        found = (first, second, third, fourth, fifth, sixth, seventh, eighth)
    return found
