import math

import pytest
import torch

from autocomp.kernels.float_codes import CODES, code_of, float_weight, group_steps

EIGHT = [CODES["e4m3"], CODES["e5m2"]]


def numbers(code):
    """Return all finite numbers of a code, ascending, by torch or by hand."""
    if code.bits == 4:
        size = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
        return torch.cat([-size[1:].flip(0), size])
    found = torch.arange(256, dtype=torch.uint8).view(code.dtype).to(torch.float32)
    return found[torch.isfinite(found)].unique()


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_numbers_stay_and_come_back(code):
    found = numbers(code)
    assert len(found) == {"e2m1": 15, "e4m3": 253, "e5m2": 247}[code.name]
    assert float(found[-1]) == code.largest
    assert torch.equal(code.nearest(found), found)
    packed = code.pack(found[None])
    assert packed.dtype == code.dtype
    assert code_of(packed) is code
    assert packed.shape == (1, math.ceil(len(found) * code.bits / 8))
    assert torch.equal(code.unpack(packed, len(found))[0], found)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_halves_go_to_the_even_mantissa_and_the_rest_to_the_nearest(code):
    found = numbers(code)
    middles = (found[1:] + found[:-1]) / 2
    rounded = code.nearest(middles)
    assert bool(((rounded == found[1:]) | (rounded == found[:-1])).all())
    bits = (rounded.abs() * 2.0 ** (code.bias - 127)).view(torch.int32)
    assert not bool((bits >> (23 - code.mantissa_bits) & 1).any())
    for offset, side in ((0.999, found[:-1]), (1.001, found[1:])):
        inside = (middles * offset).where(middles > 0, middles * (2 - offset))
        assert torch.equal(code.nearest(inside), side)
    beyond = torch.tensor([-2 * code.largest, 2 * code.largest])
    assert code.nearest(beyond).tolist() == [-code.largest, code.largest]


@pytest.mark.parametrize("code", EIGHT, ids=str)
def test_eight_bits_are_those_of_torch(code):
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    values = values * torch.logspace(-7, 6, 4096)
    inside = values.clamp(-code.largest, code.largest)
    assert torch.equal(code.nearest(values), inside.to(code.dtype).to(torch.float32))


def test_two_codes_share_a_byte_the_first_below_and_zero_has_no_sign():
    code = CODES["e2m1"]
    packed = code.pack(torch.tensor([[0.5, -6.0, -0.0]]))
    assert packed.tolist() == [[0xF1, 0x00]]
    assert code.unpack(packed, 3).tolist() == [[0.5, -6.0, 0.0]]


def test_scales_are_numbers_or_powers_of_two():
    scale, base = torch.tensor([[126, 130]], dtype=torch.uint8), torch.tensor([[3.0]]).half()
    assert group_steps(scale, None).tolist() == [[0.5, 8.0]]
    assert group_steps(scale, base).tolist() == [[1.5, 24.0]]
    codes = CODES["e2m1"].pack(torch.tensor([[1.5, 6.0, -2.0, 0.5]]))
    assert float_weight(codes, scale, base, 4).tolist() == [[2.25, 9.0, -48.0, 12.0]]
    assert float_weight(codes, scale[:, :1].half(), None, 4)[0, 0] == 189.0
