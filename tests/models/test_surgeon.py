"""The surgeon on every tiny family: a cut model computes what the masked one does."""

import copy

import pytest
import torch
from accelerate.big_modeling import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from autocomp.core.errors import PlanError
from autocomp.core.method import Edit
from autocomp.models import load
from autocomp.models.structure import build_sketch, structure
from autocomp.models.surgeon import (
    MlpShape,
    cut,
    mlp_shapes,
    reshape,
    shapes_from_json,
    shapes_to_json,
)
from autocomp.models.tiny import FAMILIES, tiny
from autocomp.models.weights import get_weight

IDS = torch.arange(3, 43).view(2, 20)


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    return tiny(request.param, tmp_path / request.param)


@pytest.fixture
def model(folder):
    return load(str(folder), dtype=torch.float32).model


@pytest.fixture
def edit(model):
    """Unequal widths, and a bias on the second MLP only."""
    first, second = structure(model).mlp_names
    generator = torch.Generator().manual_seed(0)
    output = structure(model).linears(second)[-1]
    return Edit(
        kept={
            first: torch.randperm(128, generator=generator)[:96].sort().values,
            second: torch.randperm(128, generator=generator)[:48].sort().values,
        },
        bias={output: torch.randn(64, generator=generator)},
    )


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


def masked(model, edit):
    """Return a copy in which the dropped channels are zero columns of the output linear."""
    model = copy.deepcopy(model)
    parts = structure(model)
    cut(model, Edit({}, edit.bias))
    for name, kept in edit.kept.items():
        gone = torch.ones(128, dtype=torch.bool)
        gone[kept] = False
        with torch.no_grad():
            get_weight(model, parts.linears(name)[-1])[:, gone] = 0.0
    return model


def test_a_cut_model_computes_what_the_masked_one_does(model, edit):
    dense = logits(model)
    expected = logits(masked(model, edit))
    cut(model, edit)
    assert torch.allclose(logits(model), expected, atol=2e-5)
    assert float((expected - dense).abs().max()) > 1e-2, "the edit does something"


def test_modules_and_sketch_tell_the_new_shapes(model, edit):
    cut(model, edit)
    parts = structure(model)
    sketch = build_sketch(model, "cut", dtype="float16")
    for name, width in zip(parts.mlp_names, (96, 48), strict=True):
        *readers, output = parts.linears(name)
        assert sketch[output].shape == (64, width)
        for reader in readers:  # Phi-3 keeps gate and up in one matrix
            assert sketch[reader].shape == (width * (1 + ("gate_up" in reader)), 64)
        for linear in (*readers, output):
            module = parts.get(linear)
            if isinstance(module, nn.Linear):
                assert (module.out_features, module.in_features) == sketch[linear].shape
    assert sketch.intermediate_size == 96
    assert f"{output}.bias" in sketch.rest
    assert mlp_shapes(model)[parts.mlp_names[1]] == MlpShape(48, bias=True)


def test_an_empty_model_takes_the_same_shapes(model, edit, folder):
    config = AutoConfig.from_pretrained(folder)
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(config)
    empty.tie_weights()
    cut(model, edit)
    reshape(empty, shapes_from_json(shapes_to_json(mlp_shapes(model))))
    found = build_sketch(empty, "empty", dtype="float16")
    expected = build_sketch(model, "empty", dtype="float16")
    assert found == expected
    assert found.rest == expected.rest
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_the_config_learns_a_width_that_all_share_and_no_other(model, edit):
    (key,) = (k for k in ("intermediate_size", "n_inner", "ffn_dim") if hasattr(model.config, k))
    cut(model, edit)
    assert getattr(model.config, key) == 128
    cut(model, Edit({structure(model).mlp_names[0]: torch.arange(48)}, {}))
    assert getattr(model.config, key) == 48


def test_an_empty_edit_changes_nothing(model):
    before = logits(model)
    cut(model, Edit({}, {}))
    assert torch.equal(logits(model), before)


def test_an_edit_of_another_model_is_refused(model):
    with pytest.raises(PlanError, match="another model"):
        cut(model, Edit({"decoder.9.mlp": torch.arange(4)}, {}))
    with pytest.raises(PlanError, match="another model"):
        cut(model, Edit({}, {structure(model).linears(structure(model).mlp_names[0])[0]: IDS}))
    with pytest.raises(PlanError, match="at least one channel"):
        cut(model, Edit({structure(model).mlp_names[0]: torch.arange(0)}, {}))
    with pytest.raises(PlanError, match="another model"):
        reshape(model, {"decoder.9.mlp": MlpShape(4, bias=False)})
