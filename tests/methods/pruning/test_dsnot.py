"""DSnoT swaps weights of any mask: counts stay, mean errors go."""

import pytest
import torch

from autocomp.core.errors import PlanError, UnsupportedError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods import compose
from autocomp.methods._joint import method_of
from autocomp.methods.pruning.dsnot import Dsnot, DsnotSpec
from autocomp.testing.methods import compress, output_error, site

MASKS = ("wanda-s60", "magnitude-s50", "sparsegpt-s50", "wanda-2:4", "sparsegpt-1:4", "wanda-4:8")


def biased(seed=0, shape=(24, 32)):
    """Return a weight and statistics of inputs whose means are not zero."""
    weight, stats = site(seed, shape)
    shift = torch.randn(shape[1], generator=torch.Generator().manual_seed(seed + 100))
    sample = stats.sample + shift
    hessian = sample.T @ sample / len(sample)
    return weight, Stats(
        hessian=hessian,
        norms=hessian.diagonal().sqrt(),
        mean=sample.mean(dim=0),
        sample=sample,
    )


def masks(token, weight, stats, spec=DsnotSpec()):  # noqa: B008 (frozen)
    """Return a method's mask and what DSnoT makes of it."""
    mask = LayerSpec.parse(token).mask
    keep = method_of(mask).mask(weight, mask, stats)
    return keep, Dsnot().refine(weight, keep, mask, spec, stats)


def mean_errors(weight, keep, stats):
    """Return ``|ε|`` of every row."""
    return (weight * stats.mean).masked_fill(keep, 0.0).sum(dim=1).abs()


@pytest.mark.parametrize("token", MASKS)
def test_counts_stay_and_the_mean_error_falls(token):
    """Of every row and pattern; the mean error of no row rises, and that of all is halved."""
    before = after = moved = 0.0
    for seed in range(5):
        weight, stats = biased(seed)
        keep, refined = masks(token, weight, stats)
        assert torch.equal(refined.sum(dim=1), keep.sum(dim=1))
        m = LayerSpec.parse(token).mask.m
        if m is not None:
            patterns = refined.view(24, -1, m).sum(dim=2)
            assert bool((patterns == LayerSpec.parse(token).mask.keep).all())
        errors, rest = (mean_errors(weight, chosen, stats) for chosen in (keep, refined))
        assert bool((rest <= errors * (1 + 1e-5)).all())
        before, after = before + float(errors.sum()), after + float(rest.sum())
        moved += float((keep != refined).sum())
    assert moved
    assert after < 0.5 * before


def test_an_unreachable_threshold_and_inputs_without_means_change_nothing():
    weight, stats = biased()
    for token in MASKS:
        keep, refined = masks(token, weight, stats, DsnotSpec(threshold_percent=1e9))
        assert torch.equal(refined, keep)
        centred = Stats(hessian=stats.hessian, norms=stats.norms, mean=torch.zeros(32))
        keep, refined = masks(token, weight, centred)
        assert torch.equal(refined, keep)


def test_threshold_is_relative_to_the_output():
    """Rows within it stay; the unit of a row or of the input does not matter."""
    weight, stats = biased()
    spec = DsnotSpec(threshold_percent=20)
    keep, refined = masks("wanda-s60", weight, stats, spec)
    output = (stats.sample @ weight.T).abs().mean(dim=0)
    calm = mean_errors(weight, keep, stats) <= 0.2 * output
    assert 0 < int(calm.sum()) < len(calm)
    changed = (keep != refined).any(dim=1)
    assert not bool((changed & calm).any())
    assert bool(changed[~calm].any())
    scaled = Stats(norms=4 * stats.norms, mean=4 * stats.mean, sample=4 * stats.sample)
    units = 2.0 ** (torch.arange(24) % 5)
    assert torch.equal(masks("wanda-s60", units[:, None] * weight, scaled, spec)[1], refined)


def step_by_step(weight, keep, stats, m, cycles):
    """Return the refined mask by the words of the docstring: one row, one swap at a time."""
    gain = weight * stats.mean
    variance = stats.norms**2 - stats.mean**2
    score = weight.abs() * stats.norms
    result = keep.clone()
    for row in range(len(weight)):
        grow = [j for j in range(weight.shape[1]) if not keep[row, j]]
        prune = [j for j in range(weight.shape[1]) if keep[row, j]]
        error = float(gain[row, grow].sum())
        for _ in range(cycles):
            sign = 1 if error > 0 else -1
            up = [j for j in grow if sign * gain[row, j] > 0]
            if not up or error == 0:
                break
            new = max(up, key=lambda j: float((gain[row, j] / variance[j]).abs()))
            if m is None:
                down = [j for j in prune if sign * gain[row, j] < 0]
            else:
                down = [j for j in prune if j // m == new // m]
            if not down:
                break
            old = min(down, key=lambda j: float(score[row, j]))
            after = error + float(gain[row, old] - gain[row, new])
            if abs(after) >= abs(error):
                break
            grow.remove(new)
            prune.remove(old)
            result[row, new], result[row, old] = True, False
            error = after
    return result


@pytest.mark.parametrize("token", ["wanda-s60", "magnitude-s50", "wanda-2:4", "sparsegpt-1:4"])
@pytest.mark.parametrize("cycles", [1, 4, 50])
def test_swaps_go_row_by_row_in_the_order_of_the_two_criteria(token, cycles):
    weight, stats = biased(3)
    mask = LayerSpec.parse(token).mask
    keep, refined = masks(token, weight, stats, DsnotSpec(cycles))
    assert torch.equal(refined, step_by_step(weight, keep, stats, mask.m, cycles))


def test_kept_weights_keep_their_values_or_are_updated_anew():
    """Those of SparseGPT are solved for under the refined mask: less error than without."""
    weight, stats = biased()
    keep, refined = masks("wanda-s60", weight, stats)
    dense = compress("wanda-s60+dsnot", weight, stats, "float32").to_dense()
    assert torch.equal(dense, weight * refined)
    keep, refined = masks("sparsegpt-s50", weight, stats)
    dense = compress("sparsegpt-s50+dsnot", weight, stats, "float32").to_dense()
    assert torch.equal(dense != 0, refined)
    assert not torch.equal(keep, refined)
    updated = output_error(weight, dense, stats)
    assert updated < 0.9 * output_error(weight, weight * refined, stats)


def test_rounding_goes_on_under_the_refined_mask():
    weight, stats = biased()
    for token in ("wanda-2:4", "sparsegpt-s50"):
        _, refined = masks(token, weight, stats)
        for quantizer in ("rtn-w8", "gptq-w8g8"):
            dense = compress(f"{token}+dsnot+{quantizer}", weight, stats, "float16").to_dense()
            assert not dense[~refined].any()


def test_rounding_an_updated_mask_costs_less_than_the_update_gains():
    """On average over seeds: in the order of the mask, and on a grid for what the update makes."""
    exact = rounded = bare = 0.0
    for seed in range(5):
        weight, stats = biased(seed)
        _, refined = masks("sparsegpt-s50", weight, stats)
        bare += output_error(weight, weight * refined, stats)
        found = compress("sparsegpt-s50+dsnot", weight, stats, "float32").to_dense()
        exact += output_error(weight, found, stats)
        found = compress("sparsegpt-s50+dsnot+gptq-w8", weight, stats, "float16").to_dense()
        rounded += output_error(weight, found, stats)
    assert exact < rounded < 0.7 * bare


def test_bytes_are_those_of_the_mask():
    for token in ("wanda-s60", "sparsegpt-2:4", "magnitude-s50"):
        for rest in ("", "+rtn-w4g8"):
            plain, found = (
                compose.layout(LayerSpec.parse(f"{token}{part}{rest}"), (24, 32), "float16")
                for part in ("", "+dsnot")
            )
            assert plain == found


def test_needs_a_mask_and_the_sample_only_for_a_threshold():
    with pytest.raises(UnsupportedError, match="refinement slot needs one of mask"):
        compose.check_slots(LayerSpec.parse("dsnot+rtn-w4"))
    plain, limited = (
        compose.needs(LayerSpec.parse(f"magnitude-s50+dsnot{end}")) for end in ("", "-t1")
    )
    assert plain == {Needs.NORMS, Needs.MEAN}
    assert limited - plain == {Needs.SAMPLE}
    for wrong in ("dsnot-c0", "dsnot-t"):
        with pytest.raises(PlanError, match="dsnot"):
            LayerSpec.parse(f"wanda-s50+{wrong}")
