"""Packed codes inside Triton kernels: read as they are stored, little-endian and row by row."""

from autocomp.kernels._triton import jit, tl


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
    """Return codes (n, k) int32 of bytes (n, k·bits/8) uint8, for 2, 4 or 8 bits.

    Every thread keeps the codes of the bytes that it has read: nothing is exchanged.
    """
    wide = packed.to(tl.int32)
    if BITS == 4:
        wide = tl.interleave(wide & 15, wide >> 4)
    elif BITS == 2:
        even = tl.interleave(wide & 3, (wide >> 4) & 3)
        odd = tl.interleave((wide >> 2) & 3, wide >> 6)
        wide = tl.interleave(even, odd)
    return wide


@jit
def word_code(
    words: tl.tensor,
    word: tl.tensor,
    keep: tl.tensor,
    PLACE: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tensor:
    """Return the code at one place of each unit times a power of two, and what undoes it.

    A code is masked where it lies in its word, which saves shifting it; one that crosses into the
    next word is put together and shifted down. Places are asked for in ascending order.

    Args:
        words: Pointers to the first word of each unit, uint32.
        word: The word that holds the last place, or the first word.
        keep: Where to read.
        PLACE: Which code of the unit.
        BITS: Bits a code.

    Returns:
        Codes times ``2^s`` as uint32, the word that holds the end of this place, and ``2^−s``.
    """
    SHIFT: tl.constexpr = PLACE * BITS % 32
    NEXT: tl.constexpr = (PLACE * BITS + BITS - 1) // 32
    MASK: tl.constexpr = (1 << BITS) - 1
    if SHIFT + BITS > 32:
        low = word >> SHIFT
        word = tl.load(words + NEXT, mask=keep, other=0)
        code = (low | (word << (32 - SHIFT))) & MASK
        factor = 1.0
    else:
        if SHIFT == 0 and PLACE > 0:
            word = tl.load(words + NEXT, mask=keep, other=0)
        code = word & (MASK << SHIFT)
        factor = 0.5**SHIFT
    return code, word, factor
