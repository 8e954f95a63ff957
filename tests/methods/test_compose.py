from itertools import combinations

import pytest
import torch

from autocomp.core.errors import NumericalError, PlanError, UnsupportedError
from autocomp.core.spec import DENSE, SLOTS, LayerSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight, format_from_json
from autocomp.formats.io import load, save
from autocomp.formats.steps import Permutation, Scale
from autocomp.methods import _joint, compose
from autocomp.methods._steps import stepped
from autocomp.methods.pruning.wanda import Wanda, WandaSpec
from autocomp.testing.methods import compress, output_error, sample_error, site


def error(token, seeds=5):
    """Return the output error of a token, summed over seeds."""
    total = 0.0
    for seed in range(seeds):
        weight, stats = site(seed)
        dense = compress(token, weight, stats, "float16").to_dense()
        total += output_error(weight, dense, stats)
    return total


def test_dense_is_the_weight_in_the_storage_dtype():
    weight = site()[0]
    stored = compose.compress(weight, DENSE, None, "bfloat16")
    assert torch.equal(stored.to_dense(), weight.to(torch.bfloat16).float())
    assert stored.nbytes == compose.layout(DENSE, (24, 32), "bfloat16").nbytes == 2 * 24 * 32
    with pytest.raises(NumericalError, match="does not fit the range"):
        compose.compress(1e6 * weight, DENSE, None, "float16")


def test_needs_and_versions_are_those_of_the_parts():
    spec = LayerSpec.parse("wanda-s50+gptq-w4g8")
    assert compose.needs(spec) == {Needs.NORMS, Needs.HESSIAN}
    assert compose.version(spec) == "wanda@1+gptq@1"
    assert compose.needs(DENSE) == frozenset()
    assert compose.version(DENSE) == "dense@1"


def test_slots_that_do_not_go_together_are_refused():
    spec = LayerSpec.parse("svd-r8+wanda-s50")
    for call in (
        lambda: compose.layout(spec, (24, 32), "float16"),
        lambda: compose.check(spec, "linear", (24, 32)),
        lambda: compose.compress(site()[0], spec, None, "float16"),
    ):
        with pytest.raises(UnsupportedError, match=r"factor \+ mask do not go together"):
            call()


def test_check_names_the_site_kind():
    compose.check(LayerSpec.parse("rtn-w4g8"), "embedding", (24, 32))
    compose.check(DENSE, "subblock", (0, 0))
    for kind in ("embedding", "head", "subblock"):
        with pytest.raises(UnsupportedError, match=f"of kind '{kind}'"):
            compose.check(LayerSpec.parse("wanda-s50+rtn-w4"), kind, (24, 32))


@pytest.mark.parametrize("shape", [(0, 32), (24, 0), (24,)])
def test_weights_without_entries_are_refused(shape):
    with pytest.raises(PlanError, match="shape"):
        compose.compress(torch.zeros(shape), LayerSpec.parse("rtn-w4"), None, "float16")


@pytest.mark.parametrize("mask", ["magnitude-s50", "wanda-s50", "wanda-2:4"])
def test_fixed_mask_with_nearest_rounding(mask):
    """Mask first, then the grid of what is kept and zero."""
    weight, stats = site()
    pruned = weight * (compress(mask, weight, stats, "float32").to_dense() != 0)
    rounded = compress("rtn-w4g8", pruned, stats, "float16").to_dense()
    assert torch.equal(compress(f"{mask}+rtn-w4g8", weight, stats, "float16").to_dense(), rounded)


def test_fixed_mask_stays_when_rounding_feeds_back():
    weight, stats = site()
    keep = Wanda().mask(weight, WandaSpec(0.5), stats)
    dense = compress("wanda-s50+gptq-w8", weight, stats, "float16").to_dense()
    assert bool((dense[~keep] == 0).all())
    assert error("wanda-s50+gptq-w3g8") < error("wanda-s50+rtn-w3g8")


def test_pruning_and_rounding_share_one_solver():
    """Rounding in the same run costs less than rounding what was pruned before."""
    after = 0.0
    for seed in range(5):
        weight, stats = site(seed)
        pruned = compress("sparsegpt-s50", weight, stats, "float32").to_dense()
        rounded = compress("rtn-w3", pruned, stats, "float16").to_dense()
        after += output_error(weight, rounded, stats)
    assert error("sparsegpt-s50+rtn-w3") < 0.9 * after
    assert error("sparsegpt-s50+gptq-w4g8") < error("wanda-s50+gptq-w4g8")


def test_adaptive_pattern_keeps_the_natural_order():
    """The quantizer asks for act-order; a free mask follows, a pattern does not."""
    weight, stats = site()
    for mask, same in (("sparsegpt-2:4", True), ("sparsegpt-s50", False)):
        rtn, gptq = (
            compress(f"{mask}+{quantizer}-w4g8", weight, stats, "float16").to_dense()
            for quantizer in ("rtn", "gptq")
        )
        assert torch.equal(rtn, gptq) is same


@pytest.mark.parametrize(
    ("group_size", "inputs", "expected"),
    [(None, 24, None), (64, 128, 64), (64, 96, 48), (64, 24, 24), (64, 208, 52), (16, 17, 1)],
)
def test_group_of_a_factor_is_the_largest_divisor(group_size, inputs, expected):
    assert _joint.factor_group(group_size, inputs) == expected


def test_rounded_factors_approach_the_factors():
    coarse, fine = (error(f"wsvd-r8+gptq-w{bits}g8") for bits in (3, 8))
    exact = error("wsvd-r8")
    assert exact < fine < 1.01 * exact < coarse


def test_feedback_and_refit_beat_rounding_each_factor():
    weight, stats = site()
    left, right = (
        compress("rtn-w3g8", factor, None, "float16").to_dense()
        for factor in whitened_factors(weight, stats)
    )
    naive = output_error(weight, left @ right, stats)
    dense = compress("wsvd-r8+gptq-w3g8", weight, stats, "float16").to_dense()
    assert output_error(weight, dense, stats) < 0.9 * naive


def whitened_factors(weight, stats):
    packed = compress("wsvd-r8", weight, stats, "float32")
    return (part.to_dense() for part in packed.layout.unpack(packed.tensors))


def test_stats_need_only_what_is_asked_for():
    weight, stats = site()
    lean = Stats(hessian=stats.hessian)
    compress("sparsegpt-s50+gptq-w4g8", weight, lean, "float16").check()
    with pytest.raises(PlanError, match="wanda needs the calibration statistic 'norms'"):
        compress("wanda-s50", weight, lean, "float16")


def test_left_factor_is_refitted_to_the_outputs():
    """With H at hand even the plain SVD's left factor is fitted to it: better than unrounded."""
    assert error("svd-r8+gptq-w8") < 0.6 * error("svd-r8")


MEMBERS = {
    "structure": "bypass",
    "input": "smoothquant",
    "factor": "wsvd-r8",
    "mask": "wanda-s50",
    "refinement": "dsnot",
    "quantizer": "gptq-w4g8",
    "residual": "lorc-r4",
    "activation": "absmax-a8-tensor",
    "cache": "kivi-k4v4",
}
SETS = [chosen for size in range(1, 10) for chosen in combinations(MEMBERS, size)]


def says_legal(slots):
    """Return whether the two tables allow a set of slots."""
    pairs = all(frozenset(pair) in compose.TOGETHER for pair in combinations(slots, 2))
    return pairs and all(
        set(needed) & set(slots) for slot, needed in compose.REQUIRES.items() if slot in slots
    )


def test_tables_name_slots_and_every_slot_has_a_member():
    assert tuple(MEMBERS) == SLOTS
    assert set().union(*compose.TOGETHER) | set(compose.REQUIRES) <= set(SLOTS)
    assert all(len(pair) == 2 for pair in compose.TOGETHER)


def spec_of(slots):
    """Return a layer spec that fills these slots."""
    return LayerSpec.parse("+".join(MEMBERS[slot] for slot in slots))


LEGAL = [slots for slots in SETS if says_legal(slots)]


def test_sets_that_the_tables_do_not_allow_are_refused():
    weight, stats = site()
    for slots in set(SETS) - set(LEGAL):
        for call in (compose.check_slots, lambda s: compose.compress(weight, s, stats, "float16")):
            with pytest.raises(UnsupportedError, match=r"do not go together|needs one of"):
                call(spec_of(slots))


@pytest.mark.parametrize("slots", [s for s in LEGAL if s != ("cache",)], ids="+".join)
def test_sets_that_the_tables_allow_compress_and_come_back(slots, tmp_path):
    spec, (weight, stats) = spec_of(slots), site()
    compose.check_slots(spec)
    packed = compose.compress(weight, spec, stats, "float16")
    packed.check()
    layout = compose.layout(spec, (24, 32), "float16")
    assert packed.layout == layout
    save(tmp_path / "weight", packed.tensors, layout.to_json())
    tensors, description = load(tmp_path / "weight")
    restored = CompressedWeight(format_from_json(description), tensors)
    restored.check()
    assert torch.equal(restored.to_dense(), packed.to_dense())
    assert sample_error(weight, restored, stats) == sample_error(weight, packed, stats)


def test_what_is_legal_is_what_makes_sense():
    legal = {"+".join(slots) for slots in LEGAL}
    assert {"quantizer", "input+quantizer+activation", "mask+quantizer+residual"} <= legal
    assert "input+mask+refinement+quantizer+residual+activation" in legal
    assert not {"input", "residual", "activation", "mask+activation", "factor+mask"} & legal
    assert not {"refinement", "refinement+quantizer"} & legal
    assert not {slots for slots in legal if {"structure", "cache"} & set(slots.split("+"))} - {
        "structure",
        "cache",
    }


def test_folded_step_stores_nothing_and_is_no_option():
    folded = LayerSpec.parse("smoothquant-folded+rtn-w4g8")
    plain = compose.layout(LayerSpec.parse("rtn-w4g8"), (24, 32), "float16")
    assert compose.layout(folded, (24, 32), "float16") == plain
    weight, stats = site()
    with pytest.raises(UnsupportedError, match="folded"):
        compose.compress(weight, folded, stats, "float16")


def test_statistics_of_another_input_are_refused():
    weight, stats = site()
    with pytest.raises(PlanError, match="'hessian' has 32 inputs, the weight 16"):
        compose.compress(weight[:, :16], LayerSpec.parse("rtn-w4"), stats, "float16")


OTHERS = ["squeezellm-w3", "lutgemm-w3", "hqq-w3", "nf-w4", "zqfp-w4g8"]


@pytest.mark.parametrize("token", OTHERS)
def test_quantizers_that_are_on_no_uniform_grid(token):
    weight, stats = site()
    for other in ("wanda-s50", "svd-r8"):
        with pytest.raises(UnsupportedError, match="plain uniform grids"):
            compose.check(LayerSpec.parse(f"{other}+{token}"), "linear", (24, 32))
    alone = compress(token, weight, stats, "float16")
    both = compress(f"{token}+lorc-r8+absmax-a8", weight, stats, "float16")
    lost = output_error(weight, alone.to_dense(), stats)
    assert output_error(weight, both.to_dense(), stats) < lost


@pytest.mark.parametrize("token", OTHERS)
@pytest.mark.parametrize("step", ["awq", "smoothquant", "actorder"])
def test_they_go_behind_steps_that_mix_no_inputs(token, step):
    weight, stats = site()
    spec = LayerSpec.parse(f"{step}+{token}")
    compose.check(spec, "linear", (24, 32))
    found = compress(spec.token(), weight, stats, "float16")
    assert found.layout == compose.layout(spec, (24, 32), "float16")
    assert float((found.to_dense() - weight).norm()) < 0.5 * float(weight.norm())


def test_sensitivity_follows_a_step_that_mixes_no_inputs_and_no_other():
    weight, stats = site()
    scale = torch.linspace(0.5, 2, 32)
    behind = stepped(stats, Scale(32), {"scale": scale})
    assert torch.allclose(behind.sensitivity, stats.sensitivity / scale.square())
    order = torch.arange(31, -1, -1)
    behind = stepped(stats, Permutation(32), {"order": order})
    assert torch.allclose(behind.sensitivity, stats.sensitivity.flip(1))
    with pytest.raises(UnsupportedError, match="mixes inputs"):
        compose.check(LayerSpec.parse("rotation-hadamard+squeezellm-w3"), "linear", (24, 32))
    assert compress("rotation-hadamard+nf-w4", weight, stats, "float16").layout.inner.bits == 4
