import torch

from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods.compose import compress, layout
from autocomp.testing.methods import output_error, site


def made(token, weight, stats):
    return compress(weight, LayerSpec.parse(token), stats, "float16")


def test_inputs_are_sorted_by_their_size_and_equals_keep_their_order():
    stats = Stats(norms=torch.tensor([1.0, 3.0, 1.0, 2.0]))
    order = made("actorder+rtn-w4", torch.ones(2, 4), stats).tensors["input.order"]
    assert order.tolist() == [1, 3, 0, 2]


def test_it_is_the_method_on_the_sorted_weight():
    """With a group index this is GPTQ's act-order: groups of the order, columns in the order."""
    weight, stats = site()
    order = stats.norms.argsort(descending=True, stable=True)
    hessian = stats.hessian[order][:, order]
    for token in ("rtn-w3g8", "gptq-w3g8"):
        found = made(f"actorder+{token}", weight, stats)
        direct = made(token, weight[:, order], Stats(hessian=hessian, norms=stats.norms[order]))
        for name, tensor in direct.tensors.items():
            assert torch.equal(found.tensors[f"inner.{name}"], tensor), (token, name)
        assert torch.equal(found.to_dense()[:, order], direct.to_dense())


def test_whole_rows_do_not_care():
    weight, stats = site()
    assert torch.equal(
        made("actorder+gptq-w3", weight, stats).to_dense(),
        made("gptq-w3", weight, stats).to_dense(),
    )


def test_inputs_of_unequal_size_gain():
    """On average over seeds: large inputs share grids that small ones do not stretch."""
    sorted_error = error = 0.0
    for seed in range(5):
        weight, stats = site(seed)
        size = 2.0 ** torch.randint(-4, 5, (32,), generator=torch.Generator().manual_seed(seed))
        weight = weight / size
        moved = Stats(hessian=stats.hessian * size[:, None] * size, norms=stats.norms * size)
        found = made("actorder+rtn-w3g8", weight, moved)
        sorted_error += output_error(weight, found.to_dense(), moved)
        error += output_error(weight, made("rtn-w3g8", weight, moved).to_dense(), moved)
    assert sorted_error < 0.8 * error


def test_an_input_costs_two_bytes():
    plain, found = (
        layout(LayerSpec.parse(token), (24, 32), "float16").nbytes
        for token in ("gptq-w3g8", "actorder+gptq-w3g8")
    )
    assert found == plain + 2 * 32
