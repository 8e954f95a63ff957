"""KL without logits equals KL with logits."""

import copy

import pytest
import torch

from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.reference import BaseReference
from autocomp.models import load
from autocomp.models.tiny import FAMILIES, tiny


def direct(base, candidate, window):
    """Return KL and cross entropy of one window from whole logits, in fp64."""
    with torch.no_grad():
        log_p = torch.log_softmax(base(window[None]).logits[0, :-1].double(), -1)
        log_q = torch.log_softmax(candidate(window[None]).logits[0, :-1].double(), -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    nll = -log_q.gather(1, window[1:, None]).mean().item()
    return kl, nll


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change_head", [False, True])
def test_exact_kl_and_cross_entropy(tmp_path, family, change_head):
    base = load(str(tiny(family, tmp_path / family))).model
    windows = torch.randint(3, 260, (3, 40), generator=torch.Generator().manual_seed(1))
    candidate = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in candidate.named_parameters():
            if change_head or parameter is not candidate.get_output_embeddings().weight:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.05 * noise * parameter.std() if "norm" not in name else 0.0
    meter = DivergenceMeter(BaseReference(base, windows, batch_size=2))
    scores = meter.measure(candidate, range(3), head_token="changed" if change_head else "dense")
    assert scores.tokens == 3 * 39
    for window in range(3):
        kl, nll = direct(base, candidate, windows[window])
        assert kl > 1e-4
        assert scores.kl_nats[window] == pytest.approx(kl, rel=1e-3, abs=1e-5)
        assert scores.nll_nats[window] == pytest.approx(nll, rel=1e-5)


def test_the_base_has_no_divergence_from_itself(tiny_llama_path):
    base = load(str(tiny_llama_path)).model
    windows = torch.randint(3, 260, (2, 40), generator=torch.Generator().manual_seed(1))
    reference = BaseReference(base, windows)
    scores = DivergenceMeter(reference).measure(base, range(2), head_token="dense")
    assert max(map(abs, scores.kl_nats)) < 1e-5
    assert reference.nll_nats() == pytest.approx(scores.nll_nats, rel=1e-5)


def test_windows_may_be_measured_in_any_portion(tiny_llama_path):
    base = load(str(tiny_llama_path)).model
    windows = torch.randint(3, 260, (4, 30), generator=torch.Generator().manual_seed(1))
    candidate = copy.deepcopy(base)
    with torch.no_grad():
        candidate.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    meter = DivergenceMeter(BaseReference(base, windows, batch_size=2))
    whole = meter.measure(candidate, range(4), head_token="dense").kl_nats
    parts = [
        value
        for part in ([0], [1, 2], [3])
        for value in meter.measure(candidate, part, head_token="dense").kl_nats
    ]
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_backward_adds_the_gradient_of_the_mean_kl(tmp_path, family):
    base = load(str(tiny(family, tmp_path / family))).model
    windows = torch.randint(3, 260, (3, 40), generator=torch.Generator().manual_seed(1))
    candidate = copy.deepcopy(base)
    weights = [p for name, p in candidate.named_parameters() if "mlp" in name and p.dim() == 2]
    with torch.no_grad():
        for weight in weights:
            weight *= 0.8
    for weight in weights:
        weight.requires_grad_(True)
    with torch.no_grad():
        log_p = torch.log_softmax(base(windows[:2]).logits[:, :-1].double(), -1)
    log_q = torch.log_softmax(candidate(windows[:2]).logits[:, :-1].double(), -1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    gradients = torch.autograd.grad(expected, weights)
    meter = DivergenceMeter(BaseReference(base, windows))
    found = meter.backward(candidate, [0, 1], "dense")
    assert found == pytest.approx(expected.item(), rel=1e-3)
    for weight, gradient in zip(weights, gradients, strict=True):
        assert torch.allclose(weight.grad, gradient, atol=1e-3 * float(gradient.abs().max()))
