import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.kernels.bits import pack_bits, packed_bytes, unpack_bits


def as_integers(codes: torch.Tensor, bits: int) -> list[bytes]:
    """The definition: each row is one little-endian integer with a digit of base 2^bits a code."""
    size = (codes.shape[1] * bits + 7) // 8
    return [
        sum(code << (bits * place) for place, code in enumerate(row)).to_bytes(size, "little")
        for row in codes.tolist()
    ]


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 4),
    count=st.integers(1, 40),
    seed=st.integers(0, 2**20),
)
def test_matches_the_definition_and_inverts(bits, rows, count, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, count), generator=generator)
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_bytes(count, bits))
    assert [bytes(row) for row in packed.tolist()] == as_integers(codes, bits)
    assert torch.equal(unpack_bits(packed, bits, count), codes.to(torch.uint8))


@pytest.mark.parametrize("bits", range(1, 9))
def test_longer_than_a_chunk(bits):
    codes = torch.randint(0, 2**bits, (3, 100_003), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert torch.equal(unpack_bits(packed, bits, codes.shape[1]), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_extreme_codes(bits):
    codes = torch.full((2, 17), 2**bits - 1)
    assert torch.equal(unpack_bits(pack_bits(codes, bits), bits, 17), codes.to(torch.uint8))


def test_arguments_are_copied_not_shared():
    codes = torch.arange(8, dtype=torch.uint8)[None]
    packed = pack_bits(codes, 8)
    packed.zero_()
    assert codes.sum() == 28


def test_accepts_a_transposed_matrix():
    codes = torch.randint(0, 8, (9, 5)).T
    assert torch.equal(unpack_bits(pack_bits(codes, 3), 3, 9), codes.to(torch.uint8))


@pytest.mark.parametrize("value", [-1, 8, 300])
def test_code_out_of_range(value):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.7"):
        pack_bits(torch.tensor([[0, value]]), 3)


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=r"1\.\.8"):
        pack_bits(torch.zeros((1, 1), dtype=torch.uint8), bits)


def test_wrong_length():
    with pytest.raises(ValueError, match="rows of 3 uint8"):
        unpack_bits(torch.zeros((1, 4), dtype=torch.uint8), 3, 8)


def test_not_a_matrix():
    with pytest.raises(ValueError, match="matrix"):
        pack_bits(torch.zeros(4, dtype=torch.uint8), 4)


def test_a_row_that_was_a_column_is_packed_like_any_row():
    """Its strides are those of a column, though it counts as contiguous."""
    codes = torch.arange(16)
    assert torch.equal(pack_bits(codes[:, None].T, 4), pack_bits(codes[None], 4))
