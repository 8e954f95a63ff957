import pytest
import torch

from autocomp.core.errors import PlanError, UnsupportedError
from autocomp.core.seeds import SeedTree
from autocomp.core.spec import LayerSpec
from autocomp.methods import compose
from autocomp.methods.low_rank.lplr import second_factor, sketch
from autocomp.testing.methods import compress, site

SHAPES = [(24, 40), (40, 24), (24, 24)]


def error(token, seed=0):
    """Return ``‖W − L R‖² / ‖W‖²`` of a weight whose singular values fall by halves."""
    weight = falling(seed)
    change = compress(token, weight, None, "float16").to_dense() - weight
    return float(change.square().sum() / weight.square().sum())


def falling(seed=0, shape=(24, 32)):
    left, _, right = torch.linalg.svd(site(seed, shape)[0], full_matrices=False)
    return left * 0.7 ** torch.arange(min(shape)) @ right


def drawn(weight, rank, power=0, seed=0):
    return sketch(weight, rank, power, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [6, 10])
def test_exact_without_rounding_from_the_rank_of_the_weight(shape, rank):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape[0], 6, generator=generator)
    weight = weight @ torch.randn(6, shape[1], generator=generator)
    left = drawn(weight, rank)
    assert torch.allclose(left @ second_factor(left, weight), weight, atol=1e-4)


@pytest.mark.parametrize("power", [0, 2])
def test_without_rounding_it_projects_on_the_range_of_the_sketch(power):
    """``L R = Q Qᵀ W`` with ``Q = orth((W Wᵀ)^q W S)``, S as drawn."""
    weight = site()[0]
    left = drawn(weight, 8, power)
    start = drawn(torch.eye(32), 8).double()
    wide = weight.double()
    spanned = torch.linalg.matrix_power(wide @ wide.T, power) @ wide @ start
    basis = torch.linalg.qr(spanned).Q
    found = left @ second_factor(left, weight)
    assert torch.allclose(found.double(), basis @ basis.T @ wide, atol=1e-4)


def test_power_steps_approach_the_best_of_the_rank():
    weight = falling()
    values = torch.linalg.svdvals(weight)
    best = float(values[8:].square().sum() / values.square().sum())
    errors = [error(f"lplr-r8-w8{power}") for power in ("", "-q1", "-q3")]
    assert errors == sorted(errors, reverse=True)
    assert best < errors[-1] < 1.05 * best


@pytest.mark.parametrize("ending", ["", "t", "g4"])
def test_the_second_factor_makes_up_for_the_rounding_of_the_first(ending):
    """At most the error of the same rounded left factor beside what belongs to the exact one."""
    weight = falling()
    left, right = parts(f"lplr-r8-w3w8{ending}", weight)
    path = SeedTree(0).child("lplr", *weight.shape, 8, "left")
    exact = sketch(weight, 8, 0, torch.Generator().manual_seed(path.seed))
    unfitted, fitted, kept = (
        float((left @ factor - weight).norm())
        for factor in (second_factor(exact, weight), second_factor(left, weight), right)
    )
    assert fitted < kept < 1.02 * fitted
    assert kept < unfitted


def parts(token, weight):
    packed = compress(token, weight, None, "float16")
    return [part.to_dense() for part in packed.layout.unpack(packed.tensors)]


def test_error_falls_with_bits_and_rank_on_average_over_seeds():
    def total(token):
        return sum(error(f"{token}-s{seed}", seed) for seed in range(1, 6))

    for ladder in (
        ("lplr-r8-w2", "lplr-r8-w3", "lplr-r8-w4", "lplr-r8-w8"),
        ("lplr-r2-w8", "lplr-r4-w8", "lplr-r8-w8", "lplr-r16-w8"),
    ):
        errors = [total(token) for token in ladder]
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("seed", range(6))
def test_the_nearer_of_both_sides_is_kept(seed):
    """Each side written out with nearest rounding by row; which is nearer depends on the seed."""
    weight = falling(seed)
    path = SeedTree(0).child("lplr", 24, 32, 6)

    def start(side, matrix):
        return sketch(matrix, 6, 0, torch.Generator().manual_seed(path.child(side).seed))

    def rounded(factor):
        return compress("rtn-w3", factor, None, "float16").to_dense()

    left = rounded(start("left", weight))
    first = left @ rounded(second_factor(left, weight))
    right = rounded(start("right", weight.T).T)
    second = rounded(second_factor(right.T, weight.T).T) @ right
    expected = min(first, second, key=lambda product: float((product - weight).norm()))
    assert torch.equal(compress("lplr-r6-w3", weight, None, "float16").to_dense(), expected)


def test_seeds_are_of_the_spec_and_reproduce():
    weight = site()[0]
    first, again, other = (
        compress(token, weight, None, "float16").to_dense()
        for token in ("lplr-r8-w8", "lplr-r8-w8", "lplr-r8-w8-s1")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bytes():
    def size(token):
        return compose.layout(LayerSpec.parse(token), (24, 32), "float16").nbytes

    # codes; a float16 scale and a byte of zero point for each of 24 + 8 rows
    assert size("lplr-r8-w8") == 8 * (24 + 32) + 3 * (24 + 8)
    assert size("lplr-r8-w4w8") == 8 * (24 // 2 + 32) + 3 * (24 + 8)
    assert size("lplr-r8-w8t") == 8 * (24 + 32) + 2 * 3
    # two groups of 4 a row on the left, eight on the right
    assert size("lplr-r8-w8g4") == 8 * (24 + 32) + 3 * (24 * 2 + 8 * 8)


def test_tokens():
    for token in ("lplr-r8-w8", "lplr-p50-w4w8", "lplr-r8-w4g16", "lplr-p12.5-w3w2t-q2-s11"):
        assert LayerSpec.parse(token).factor.token() == token
    assert LayerSpec.parse("lplr-r8-w8w8-q0-s0").token() == "lplr-r8-w8"
    for token in ("lplr-r8", "lplr-w8", "lplr-r8-w8-t", "lplr-r8-w8g", "lplr-x8-w8"):
        with pytest.raises(PlanError, match="cannot read"):
            LayerSpec.parse(token)
    with pytest.raises(PlanError, match="bits must be of"):
        LayerSpec.parse("lplr-r8-w8w7")
    with pytest.raises(PlanError, match="at least 1"):
        LayerSpec.parse("lplr-r8-w8g0")


def test_its_factors_are_not_rounded_twice():
    with pytest.raises(UnsupportedError, match="lplr rounds its factors itself"):
        compose.check(LayerSpec.parse("lplr-r8-w8+rtn-w4"), "linear", (24, 32))
