import torch

from autocomp.formats.straight_through import straight_through


def test_straight_through_gradient_follows_the_mask():
    weight = torch.tensor([[0.4, 1.6, 2.2]], requires_grad=True)
    keep = torch.tensor([[True, False, True]])
    out = straight_through(weight, weight.round() * keep, keep)
    assert out.tolist() == [[0.0, 0.0, 2.0]]
    (out * torch.tensor([[3.0, 5.0, 7.0]])).sum().backward()
    assert weight.grad.tolist() == [[3.0, 0.0, 7.0]]
