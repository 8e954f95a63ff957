"""Tiles hold the stored bits in another order."""

import pytest
import torch

from autocomp.kernels.bits import pack_bits
from autocomp.kernels.dequantize import dequantize
from autocomp.kernels.gather_rows import gather_tile_rows
from autocomp.kernels.int4_tile_matmul import (
    from_offset,
    from_tiles,
    int4_tile_matmul,
    lacks_tiles,
    tile_codes,
    to_offset,
    to_tiles,
    why_no_tiles,
)

CPU = torch.device("cpu")
needs_tiles = pytest.mark.skipif(lacks_tiles() is not None, reason=str(lacks_tiles()))


def grid(shape, groups, symmetric, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, shape, generator=generator)
    scale = torch.randn(shape[0], groups, generator=generator).to(torch.float16)
    zero = torch.randint(0, 16, (shape[0], groups), generator=generator)
    return codes, scale, None if symmetric else pack_bits(zero, 4)


@needs_tiles
@pytest.mark.parametrize("shape", [(64, 64), (4160, 32)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_tiles_give_the_stored_bits_back(shape, symmetric):
    codes, scale, zero = grid(shape, shape[1] // 32, symmetric)
    packed = pack_bits(codes, 4)
    tiles = to_tiles(packed)
    offset = None if symmetric else to_offset(zero, scale.shape[1])
    assert (tiles.nbytes, tiles.dtype) == (packed.nbytes, torch.uint8)
    assert torch.equal(tile_codes(tiles), codes.to(torch.uint8))
    assert torch.equal(from_tiles(tiles), packed)
    assert symmetric or torch.equal(from_offset(offset), zero)
    rows = torch.tensor([0, 17, shape[0] - 1, 33, 17])
    whole = dequantize(packed, scale, zero, 4, shape[1])
    assert torch.equal(gather_tile_rows(rows, tiles, scale, offset), whole[rows])


@needs_tiles
def test_error_is_that_of_a_weight_in_bf16():
    codes, scale, zero = grid((128, 256), 4, False)
    tiles, offset = to_tiles(pack_bits(codes, 4)), to_offset(zero, 4)
    inputs = torch.randn(4, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    weight = dequantize(pack_bits(codes, 4), scale, zero, 4, 256)
    exact = inputs.double() @ weight.double().T
    plain = (inputs.float() @ weight.bfloat16().float().T).bfloat16()
    with int4_tile_matmul.pinned("int4pack"):
        found = int4_tile_matmul(inputs, tiles, scale, offset)
    error, allowed = ((y.double() - exact).square().mean().sqrt() for y in (found, plain))
    assert error <= 2 * allowed


@pytest.mark.parametrize(
    ("shape", "bits", "size", "dtype", "expected"),
    [
        ((64, 64), 4, 64, torch.float32, "requires bfloat16 inputs on cpu, got torch.float32"),
        ((64, 64), 3, 64, torch.bfloat16, "got 3 bits, groups of 64"),
        ((64, 48), 4, 48, torch.bfloat16, "got 4 bits, groups of 48"),
        ((96, 64), 4, 64, torch.bfloat16, "takes outputs divisible by 64, got 96"),
    ],
)
def test_why_no_tiles(shape, bits, size, dtype, expected):
    assert expected in why_no_tiles(shape, bits, size, dtype, CPU)


def test_the_machine_decides_last():
    assert why_no_tiles((64, 64), 4, 64, torch.bfloat16, CPU) == lacks_tiles()
