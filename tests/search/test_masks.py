"""Every mask from a token to a native folder that loads and computes the same."""

import pytest
import torch

import autocomp
from autocomp.cli.compress import uniform_token
from autocomp.config import load_config
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.core.registry import METHODS
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import weight_bytes
from autocomp.export import export_model
from autocomp.models import sketch_of
from autocomp.search.run import compress_uniform
from autocomp.search.setup import Setup, family

TOKENS = torch.arange(3, 60)[None]
MASKED = (
    ("magnitude-s50", "none"),
    ("sparsegpt-4:8+gptq-w4g16", "signround-2"),
    ("wanda-s60+dsnot", "none"),
    ("sparsegpt-2:4+dsnot+gptq-w4g16", "signround-2"),
    ("esparse-1:4+rtn-w8g16", "none"),
    ("shuffle+esparse-2:4+dsnot+gptq-w4g16", "signround-2"),
    ("smoothquant+wanda-2:4+dsnot+rtn-w8-sym+absmax-a8", "none"),
)
"""Values of ``autocomp compress --method``, and the finish."""


def settings(model, finish="none"):
    return load_config(
        None,
        {
            "model": str(model),
            "data.calibration": "corpus",
            "data.window": 64,
            "data.calibration_tokens": 1024,
            "data.rungs": (128,),
            "data.heldout_tokens": 128,
            "search.finish": finish,
        },
    )


@pytest.mark.parametrize(("method", "finish"), MASKED)
def test_compress_and_reload(trained_llama_path, method, finish, tmp_path):
    config, token = settings(trained_llama_path, finish), uniform_token(method, 4, 16)
    folder = compress_uniform(
        config, linear=token, embedding=None, out=tmp_path / "native", progress=Silent()
    )
    sketch, spec = sketch_of(config.model), LayerSpec.parse(token)
    plan = Plan({s.name: spec if s.kind == "linear" else DENSE for s in sketch.sites})
    folds = spec.input is not None
    size = (folder / "model.safetensors").stat().st_size
    assert size < weight_bytes(sketch, plan) if folds else size == weight_bytes(sketch, plan)

    export_model(folder, tmp_path / "again")
    model, again = (
        autocomp.load(path, dtype=torch.float32) for path in (folder, tmp_path / "again")
    )
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    for site in sketch.sites:
        if site.kind == "linear":
            stored = model.get_submodule(site.name).compressed()
            assert stored.layout.multiply_adds < 0.8 * site.shape[0] * site.shape[1]


def test_every_mask_and_refinement_is_tried():
    slots = {name: method.spec.slot for name, method in METHODS.items()}
    masks = {name for name, slot in slots.items() if slot in ("mask", "refinement")} - {"wanda"}
    assert masks | {"shuffle"} <= {
        part.partition("-")[0] for method, _ in MASKED for part in method.split("+")
    }


def test_a_search_of_masks_is_priced_at_the_bytes_it_ships(trained_llama_path):
    """Refined and shuffled masks are options like any other: legal, priced and named."""
    tokens = ("wanda-2:4+rtn-w4g16", "wanda-2:4+dsnot+rtn-w4g16", "shuffle+wanda-2:4+rtn-w4g16")
    config = load_config(
        None, {"model": str(trained_llama_path), "space.linear": tokens, "budget.max_bytes": "1MB"}
    )
    setup = Setup.of(config)
    site = next(site for site in setup.sketch.sites if site.kind == "linear")
    assert [spec.token() for spec in setup.site_lists[site.name]] == sorted(
        tokens, key=lambda token: ("shuffle" in token, token)
    )
    plain, refined, shuffled = (
        weight_bytes(setup.sketch, Plan({site.name: LayerSpec.parse(token)})) for token in tokens
    )
    assert plain == refined
    assert shuffled - plain >= 2 * site.shape[1]
    for token in tokens[:2]:
        assert family(Plan({site.name: LayerSpec.parse(token)})) == "sparse"
