"""What a mask removed stays removed: in every composition, through every later step."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from autocomp.core.errors import UnsupportedError
from autocomp.core.spec import LayerSpec
from autocomp.formats.base import CompressedWeight, format_from_json
from autocomp.formats.bitmask import Bitmask
from autocomp.formats.io import load, save
from autocomp.formats.nm import NM
from autocomp.formats.prepared import Prepared
from autocomp.formats.sum import Sum
from autocomp.layers.fold import _divide_rows
from autocomp.methods import compose
from autocomp.methods._joint import method_of
from autocomp.methods._learned_rounding import Rounding
from autocomp.methods._trained import trained
from autocomp.testing.methods import site
from autocomp.testing.options import SHAPE

METHODS = ("magnitude", "wanda", "sparsegpt", "esparse")
AMOUNTS = ("s33.3", "s50", "s75", "2:4", "1:4", "4:8", "3:8", "4:4")
MASKS = (*map("-".join, product(METHODS, AMOUNTS)), "wanda-s50-variant")
SLOTS = {
    "input": ("", "smoothquant", "actorder", "rotation-hadamard", "shuffle"),
    "refinement": ("", "dsnot", "dsnot-c3-t5"),
    "quantizer": ("", "rtn-w2g8", "rtn-w8-sym", "gptq-w3g16", "gptq-w4-mse"),
    "residual": ("", "lorc-r4", "lorc-r2-w8"),
    "activation": ("", "absmax-a8"),
}


@st.composite
def specs(draw):
    """Draw a layer spec with a mask and whatever goes beside it."""
    chosen = {slot: draw(st.sampled_from(tokens)) for slot, tokens in SLOTS.items()}
    mask = draw(st.sampled_from(MASKS))
    if chosen["input"] == "shuffle" and ":" not in mask:
        chosen["input"] = ""
    if not chosen["quantizer"]:
        chosen["activation"] = ""
    order = (chosen["input"], mask, *(chosen[slot] for slot in list(SLOTS)[1:]))
    return LayerSpec.parse("+".join(token for token in order if token))


def sparse_part(weight):
    """Return the masked matrix inside a compressed weight."""
    layout = weight.layout
    while isinstance(layout, Prepared | Sum):
        weight = layout.unpack(weight.tensors)
        weight = weight[0] if isinstance(layout, Sum) else weight
        layout = weight.layout
    assert isinstance(layout, Bitmask | NM)
    return weight


def tuned(weight, generator):
    """Learn its roundings and clips, against gradients that mean nothing."""
    leaf = weight.grid_leaf(weight.to_dense())
    if leaf is None:
        return weight
    rounding = Rounding(leaf, torch.float32)
    for _ in range(3):
        rounding.descend(torch.randn(SHAPE, generator=generator), 0.3)
    return rounding.compressed()


def recovered(weight, generator):
    """Train values, codes and scales, to where chance leads."""
    form = trained(weight, 3, generator)
    with torch.no_grad():
        for parameter in form.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return form.stored()


def stored(weight, generator):
    """Store a changed weight in place."""
    change = torch.randn(SHAPE, generator=generator)
    return weight.layout.store(weight.to_dense() + change, weight.tensors)


def folded(weight, generator):
    """Divide the rows, as where the scale of a reader moves into this weight."""
    divisor = 2.0 ** torch.randint(-2, 3, (SHAPE[0],), generator=generator)
    return _divide_rows(weight, divisor) or weight


def settled(weight, generator):
    """Put the tensors in the order of a kernel, and back."""
    layout = weight.layout
    order = layout.settle(weight.tensors, torch.float32)
    return CompressedWeight(layout, layout.unsettle(order))


STEPS = (tuned, recovered, stored, folded, settled)


@settings(max_examples=60, deadline=None)
@given(spec=specs(), steps=st.lists(st.sampled_from(STEPS), max_size=3), seed=st.integers(0, 99))
def test_zeros_stay_zeros_and_counts_stay_exact(tmp_path_factory, spec, steps, seed):
    weight, stats = site(seed)
    made = compose.compress(weight, spec, stats, "float16")
    path = tmp_path_factory.getbasetemp() / "masked.safetensors"
    save(path, made.tensors, made.layout.to_json())
    tensors, description = load(path)
    found = CompressedWeight(format_from_json(description), tensors)
    generator = Generator().manual_seed(seed)
    part = sparse_part(found)
    keep = part.layout.keep_mask(part.tensors)
    check_count(spec, keep)
    for step in (settled, *steps):
        found = step(found, generator)
        found.check()
        part = sparse_part(found)
        assert found.layout == made.layout == compose.layout(spec, SHAPE, "float16"), step
        assert found.nbytes == made.nbytes, step
        assert torch.equal(part.layout.keep_mask(part.tensors), keep), step
        assert not part.to_dense()[~keep].any(), step
        assert not part.layout.fake_quant(weight, part.tensors)[~keep].any(), step


def check_count(spec, keep):
    """Check that a mask (out, in) removes exactly what its spec says."""
    if spec.mask.m is not None:
        patterns = keep.view(SHAPE[0], -1, spec.mask.m).sum(dim=2)
        assert bool((patterns == spec.mask.keep).all())
    else:
        dropped = method_of(spec.mask).dropped(spec.mask, SHAPE)
        assert int((~keep).sum()) == dropped
        if method_of(spec.mask).by_row(spec.mask) and not method_of(spec.mask).adaptive:
            assert len(keep.sum(dim=1).unique()) == 1


def test_every_step_changes_something():
    """So that the property above is about what moves."""
    weight, stats = site()
    plain, rounded = (
        compose.compress(weight, LayerSpec.parse(token), stats, "float16")
        for token in ("wanda-2:4+dsnot", "sparsegpt-s50+dsnot+gptq-w4g8")
    )
    for step, start in (
        (tuned, rounded),
        (recovered, plain),
        (stored, rounded),
        (folded, rounded),
    ):
        done = step(start, Generator().manual_seed(0))
        assert not torch.equal(done.to_dense(), start.to_dense()), step


def test_a_trained_weight_gets_no_gradient_where_it_is_removed():
    weight, stats = site()
    for token in ("wanda-2:4+dsnot", "esparse-1:4+rtn-w4g8"):
        made = compose.compress(weight, LayerSpec.parse(token), stats, "float16")
        free = weight.clone().requires_grad_()
        made.layout.fake_quant(free, made.tensors).square().sum().backward()
        keep = made.layout.keep_mask(made.tensors)
        assert not free.grad[~keep].any()
        assert free.grad[keep].any()


def test_masks_go_on_uniform_grids_alone():
    spec = LayerSpec.parse("wanda-2:4+dsnot+rtn-w4g8")
    compose.check(spec, "linear", SHAPE)
    with pytest.raises(UnsupportedError, match="plain uniform grids"):
        compose.check(replace(spec, quantizer=LayerSpec.parse("nf-w4").quantizer), "linear", SHAPE)
