from dataclasses import replace

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.methods.quantization import signround
from autocomp.methods.quantization.signround import SignRoundSpec
from autocomp.testing.blocks import PLANS, compress, loss, view


@pytest.mark.parametrize("text", ["signround", "signround-", "signround-05", "signround-1.5"])
def test_tokens_are_read_strictly(text):
    with pytest.raises(PlanError, match="signround-100"):
        SignRoundSpec.parse(text)


def test_it_is_no_method_of_a_site():
    with pytest.raises(PlanError, match="changes the block, not one site"):
        LayerSpec.parse("gptq-w4g8+signround-10")


def test_learned_roundings_beat_second_order_ones_at_few_bits():
    """The whole block is tuned on what it is measured on: a fifth less error, over seeds."""
    tuned = made = 0.0
    for seed in range(3):
        block = view(PLANS[0], seed)
        tuned += loss(block, compress("signround-100", block))
        made += loss(block, {})
    assert tuned < 0.8 * made


def test_more_steps_help():
    """Shorter steps from the same start, on average over seeds."""
    errors = []
    for steps in (2, 20, 200):
        errors.append(0.0)
        for seed in range(3):
            block = view(PLANS[0], seed)
            errors[-1] += loss(block, compress(f"signround-{steps}", block))
    assert errors[0] > errors[1] > errors[2]


def test_clips_stay_in_half_to_one_of_the_stored_range():
    block = view(PLANS[0])
    found = compress("signround-50", block)
    assert found
    for site, weight in found.items():
        before = block.sites[site].compressed.tensors["scale"].float()
        ratio = weight.tensors["scale"].float() / before
        assert float(ratio.min()) > 0.5 * (1 - 2**-10), site  # float16 has 11 bits
        assert float(ratio.max()) < 1 + 2**-10, site
        assert float(ratio.min()) < 0.99, f"{site}: no clip was learned"


def test_a_tuning_that_makes_it_worse_is_dropped(monkeypatch):
    """Two steps of half the range each, away from what the layer methods chose."""
    block = view(PLANS[0])
    monkeypatch.setattr(signround.Rounding, "descend", lambda self, gradient, rate: None)
    assert loss(block, {}) < 1.0
    assert compress("signround-2", block) == {}


def test_targets_that_are_not_finite_change_nothing():
    block = view(PLANS[0])
    targets = [torch.full_like(part, torch.nan) for part in block.targets]
    assert compress("signround-3", replace(block, targets=targets)) == {}


def test_every_window_is_used_before_any_comes_again(monkeypatch):
    block = view(PLANS[0])
    monkeypatch.setattr(signround, "BATCH_TOKENS", 2 * block.inputs[0].shape[1])
    draws = signround._draws(block)
    per_epoch = sum(-(-len(hidden) // 2) for hidden in block.inputs)
    for _ in range(3):
        seen = [
            (batch, row)
            for batch, rows in (next(draws) for _ in range(per_epoch))
            for row in rows.tolist()
        ]
        assert sorted(seen) == [
            (b, r) for b, part in enumerate(block.inputs) for r in range(len(part))
        ]
