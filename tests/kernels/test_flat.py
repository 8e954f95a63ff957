"""Named tuples as plain arguments, and back."""

import inspect

import torch
from torch import Tensor

from autocomp.kernels._flat import Flat
from autocomp.kernels.low_rank_matmul import Packed

ONE, TWO = torch.ones(1), torch.zeros(2)


def function(
    inputs: Tensor, left: Tensor | Packed, right: Packed | None, bits: int, extra: int = 7
) -> list[object]:
    return [inputs, left, right, bits, extra]


def test_what_is_spread_is_put_together_again():
    flat = Flat(function)
    plain = flat.taking_plain(function)
    packed, half = Packed(ONE, TWO, None, 4), Packed(TWO, ONE, ONE, 2)
    for left in (ONE, packed):
        for right in (None, half):
            placed, named = flat.spread((ONE, left, right), {"bits": 3})
            assert named == {"bits": 3}
            assert not any(hasattr(value, "_fields") for value in placed)
            assert plain(*placed, 3) == [ONE, left, right, 3, 7]
    placed, named = flat.spread((ONE,), {"left": packed, "right": None, "bits": 3, "extra": 1})
    order = list(inspect.signature(plain).parameters)[1:]
    assert list(named) == order
    assert plain(ONE, *named.values()) == [ONE, packed, None, 3, 1]
