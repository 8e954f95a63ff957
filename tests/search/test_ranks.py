"""Every factorisation and correction from a token to a native folder that computes the same."""

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
from autocomp.search.correction import option_class
from autocomp.search.run import compress_uniform

TOKENS = torch.arange(3, 60)[None]
FACTORED = (
    "svd-p50",
    "wsvd-r8+gptq-w4g16",
    "asvd-p50-a100",
    "lplr-p80-w8w4t-q1",
    "laser-k20",
    "laser-k75+gptq-w4g16",
    "rtn-w3g16+lqer-r4-w8",
    "sparsegpt-s50+gptq-w4g16+lorc-r4-w8",
)
"""Values of ``autocomp compress --method``."""


@pytest.mark.parametrize("method", FACTORED)
def test_compress_and_reload(trained_llama_path, method, tmp_path):
    settings = {
        "model": str(trained_llama_path),
        "data.calibration": "corpus",
        "data.window": 64,
        "data.calibration_tokens": 512,
        "data.rungs": (128,),
        "data.heldout_tokens": 128,
        "search.finish": "none",
    }
    token = uniform_token(method, 4, 16)
    folder = compress_uniform(
        load_config(None, settings),
        linear=token,
        embedding=None,
        out=tmp_path / "native",
        progress=Silent(),
    )
    sketch, spec = sketch_of(str(trained_llama_path)), LayerSpec.parse(token)
    plan = Plan({s.name: spec if s.kind == "linear" else DENSE for s in sketch.sites})
    assert (folder / "model.safetensors").stat().st_size == weight_bytes(sketch, plan)
    export_model(folder, tmp_path / "again")
    model, again = (
        autocomp.load(path, dtype=torch.float32) for path in (folder, tmp_path / "again")
    )
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_every_method_of_the_slots_is_tried():
    slots = {name: method.spec.slot for name, method in METHODS.items()}
    ranks = {name for name, slot in slots.items() if slot in ("factor", "residual")}
    assert ranks <= {part.partition("-")[0] for method in FACTORED for part in method.split("+")}


def test_corrections_are_shared_by_what_rounds_the_factors():
    found = {token: option_class(LayerSpec.parse(token)) for token in ("lplr-r8-w8", "asvd-r8")}
    assert found == {"lplr-r8-w8": "rank-w8", "asvd-r8": "rank"}
    assert option_class(LayerSpec.parse("laser-k20+rtn-w8")) == "rank-w8"
