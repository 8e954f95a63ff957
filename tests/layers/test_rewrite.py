"""A native folder written again with other values."""

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.plan import Plan
from autocomp.core.spec import LayerSpec
from autocomp.cost.bytes import site_layout
from autocomp.formats.uniform import Uniform
from autocomp.layers.native import load, read_extra, read_plan, write_native
from autocomp.layers.rewrite import rewrite_native
from autocomp.models import load as load_model
from autocomp.models.weights import get_weight

SITE = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def native(tiny_llama_path, tmp_path_factory):
    """A folder with one site on a grid, all else dense."""
    loaded = load_model(str(tiny_llama_path))
    spec = LayerSpec.parse("rtn-w4g32")
    plan = Plan({SITE: spec})
    weights = {}
    for site in loaded.sketch.weights():
        layout = site_layout(loaded.sketch, site.name, plan[site.name])
        if isinstance(layout, Uniform):
            groups = (layout.shape[0], layout.shape[1] // 32)
            codes = torch.ones(layout.shape)
            weights[site.name] = layout.pack(codes, torch.ones(groups), torch.zeros(groups))
        else:
            weights[site.name] = layout.pack(get_weight(loaded.model, site.name))
    folder = tmp_path_factory.mktemp("native") / "a"
    write_native(
        folder, plan=plan, sketch=loaded.sketch, weights=weights, model=loaded.model,
        tokenizer=loaded.tokenizer, extra={"trial": 3},
    )  # fmt: skip
    return folder, plan, weights[SITE]


def test_values_change_and_nothing_else(native, tmp_path):
    folder, plan, weight = native
    changed = weight.layout.store(3 * torch.ones(weight.layout.shape), weight.tensors)
    trained = Plan(plan.layers, recovery="lora-r8-300")
    rewrite_native(
        folder, tmp_path / "b", plan=trained, weights={SITE: changed}, extra={"kl": 0.1}
    )
    old, new = load(folder), load(tmp_path / "b")
    assert torch.equal(new.get_submodule(SITE).weight.float(), changed.to_dense())
    assert torch.equal(old.get_submodule(SITE).weight.float(), weight.to_dense())
    assert read_plan(tmp_path / "b") == trained
    assert read_extra(tmp_path / "b") == {"trial": 3, "kl": 0.1}
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {file.name for file in (tmp_path / "b").iterdir()} == files.keys()
    size = (tmp_path / "b" / "model.safetensors").stat().st_size
    assert size == len(files["model.safetensors"])
    same = files.keys() - {"model.safetensors", "plan.json", "autocomp.json"}
    assert all((tmp_path / "b" / name).read_bytes() == files[name] for name in same)


def test_another_layout_is_refused(native, tmp_path):
    folder, plan, weight = native
    layout = Uniform(weight.layout.shape, 3, 32)
    groups = (layout.shape[0], layout.shape[1] // 32)
    other = layout.pack(torch.ones(layout.shape), torch.ones(groups), torch.zeros(groups))
    with pytest.raises(PlanError, match=r"down_proj\.codes"):
        rewrite_native(folder, tmp_path / "b", plan=plan, weights={SITE: other}, extra={})
    assert not (tmp_path / "b").exists()
