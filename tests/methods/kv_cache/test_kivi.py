"""KIVI against its reference checks, on cases that can be worked out by hand."""

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.kernels.bits import pack_bits, unpack_bits
from autocomp.methods.kv_cache.kivi import Kivi, KiviSpec, MinMax, channel_group

METHOD = Kivi()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half().float()


@pytest.mark.parametrize(
    ("token", "spec"),
    [
        ("kivi-k2v2", KiviSpec(2, 2)),
        ("kivi-k8v4", KiviSpec(8, 4, 32, 128)),
        ("kivi-k4v2g64", KiviSpec(4, 2, 64)),
        ("kivi-k2v4r32", KiviSpec(2, 4, residual_length=32)),
        ("kivi-k4v4g16r48", KiviSpec(4, 4, 16, 48)),
    ],
)
def test_tokens(token, spec):
    assert LayerSpec.parse(token) == LayerSpec(cache=spec)
    assert spec.token() == token


def test_spelled_out_defaults_are_the_same_spec():
    assert LayerSpec.parse("kivi-k8v4g32r128").token() == "kivi-k8v4"


@pytest.mark.parametrize(
    "token",
    ["kivi", "kivi-k4", "kivi-k3v4", "kivi-k4v4g0", "kivi-k4v4r0", "kivi-k4v4g48", "kivi-k4v4r8"],
)
def test_bad_tokens(token):
    with pytest.raises(PlanError, match="kivi"):
        LayerSpec.parse(token)


def upstream(prefill: int, decoded: int, block: int) -> tuple[int, int]:
    """Count stored keys and values with the bookkeeping of the paper's two phases."""
    keys, key_residual = prefill // block * block, prefill % block
    values, value_residual = max(0, prefill - block), min(prefill, block)
    for _ in range(decoded):
        key_residual, value_residual = key_residual + 1, value_residual + 1
        if key_residual == block:  # the whole block
            keys, key_residual = keys + block, 0
        if value_residual > block:  # the oldest token
            values, value_residual = values + 1, value_residual - 1
    return keys, values


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 70])
def test_what_is_stored_does_not_depend_on_the_path(length):
    spec = KiviSpec(2, 2, 8, 16)
    for prefill in range(length + 1):
        assert METHOD.stored(spec, length) == upstream(prefill, length - prefill, 16)


@pytest.mark.parametrize("length", [0, 1, 127])
def test_short_sequences_are_kept_as_they_are(length):
    spec = KiviSpec(2, 2)
    assert METHOD.stored(spec, length) == (0, 0)
    assert METHOD.nbytes(spec, (3, 64), length, "bfloat16") == 2 * 3 * 64 * length * 2


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_values_move_by_at_most_half_a_step(bits, dim):
    groups = 5 * random(40, 40, seed=bits) + 3
    rounded = MinMax.of(groups, bits, dim)
    # nearest code: half a step, and the scale's own rounding to 11 bits is below an eighth of one
    assert ((rounded.dense() - groups).abs() <= rounded.scale.float() / 2 * 1.001).all()
    step = (groups.amax(dim) - groups.amin(dim)) / (2**bits - 1)
    torch.testing.assert_close(rounded.scale.float().squeeze(dim), step, rtol=1e-3, atol=0)


def test_constant_groups_are_kept():
    groups = torch.full((4, 8), -1.5)
    groups[0] = 0.0
    assert torch.equal(MinMax.of(groups, 2, 1).dense(), groups)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_survive_packing(bits):
    codes = MinMax.of(random(6, 64), bits, 1).codes
    packed = pack_bits(codes, bits)
    assert packed.nbytes == 6 * 64 * bits // 8
    assert torch.equal(unpack_bits(packed, bits, 64), codes)


def test_keys_share_a_scale_along_tokens_and_values_along_channels():
    spec = KiviSpec(2, 2, 4, 4)
    plain = random(1, 8, 8)
    loud = plain.clone()
    loud[0, 5, 6] = 100.0
    keys = METHOD.keys(spec, loud) != METHOD.keys(spec, plain)
    assert keys[0, 4:, 6].any()
    assert not keys[0, :4].any()
    assert not keys[0, :, [0, 1, 2, 3, 4, 5, 7]].any()
    values = METHOD.values(spec, loud) != METHOD.values(spec, plain)
    assert values[0, 5, 4:].any()
    assert not values[0, 5, :4].any()
    assert not values[0, [0, 1, 2, 3, 4, 6, 7]].any()


@pytest.mark.parametrize(("width", "group"), [(64, 32), (80, 20), (16, 16), (96, 32), (7, 7)])
def test_channels_of_a_value_are_grouped_evenly(width, group):
    assert channel_group(KiviSpec(2, 2), width) == group
    value = random(1, 3, width)
    assert METHOD.values(KiviSpec(8, 8), value).shape == value.shape


@pytest.mark.parametrize("length", [128, 129, 255, 256, 4096, 4100])
def test_bytes_are_three_bits_a_number_and_the_residual(length):
    found = METHOD.nbytes(KiviSpec(2, 2), (3, 64), length, "float16")
    residual = 128 + length % 128
    assert found * 8 / (2 * 3 * 64 * length) == 3 + 13 * residual / (2 * length)


def test_bytes_by_hand():
    spec = KiviSpec(4, 8, 4, 8)
    keys, values = METHOD.stored(spec, 21)
    assert (keys, values) == (16, 13)
    codes = 16 * 6 // 2 + 13 * 6
    grids = (16 // 4 * 6 + 13 * 6 // 3) * 4  # 3 channels is what divides 6 up to 4
    latest = (5 + 8) * 6 * 2
    assert METHOD.nbytes(spec, (2, 6), 21, "float16") == 2 * (codes + grids + latest)
