"""Every weight-only quantizer from a token to a native folder that loads and computes the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import autocomp
from autocomp.cli.compress import uniform_token
from autocomp.config import load_config
from autocomp.core.errors import ConfigError
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.core.registry import METHODS
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import weight_bytes
from autocomp.export import export_model
from autocomp.layers.native import read_plan
from autocomp.models import sketch_of
from autocomp.search import estimate
from autocomp.search.run import compress_uniform
from autocomp.search.workbench import Workbench

TOKENS = torch.arange(3, 60)[None]

# --method and --bits of `autocomp compress`, with groups of 16.
METHOD_BITS = (
    ("rtn", 4),
    ("gptq", 4),
    ("lutgemm", 3),
    ("lutgemm-w2g16-offset-weighted", 0),
    ("squeezellm", 3),
    ("squeezellm-w3-o0.45", 0),
    ("actorder", 3),
    ("rotation", 3),
    ("awq", 4),
    ("quip", 3),
    ("owq", 3),
    ("spqr", 3),
    ("spqr-w3-o1", 0),
    ("hqq", 3),
    ("nf", 4),
    ("fp", 8),
    ("zqfp", 4),
    ("zqfp-w4g16-m2", 0),
)


@pytest.fixture(scope="module")
def settings(trained_llama_path):
    return load_config(
        None,
        {
            "model": str(trained_llama_path),
            "data.calibration": "corpus",
            "data.window": 64,
            "data.calibration_tokens": 1024,
            "data.rungs": (128,),
            "data.heldout_tokens": 128,
            "search.finish": "none",
        },
    )


@pytest.mark.parametrize(
    ("method", "bits", "finish"),
    [(*case, "none") for case in METHOD_BITS] + [("gptq", 3, "gptaq"), ("awq", 3, "gptaq")],
)
def test_compress_and_reload(settings, method, bits, finish, tmp_path):
    token = uniform_token(method, bits, 16)
    settings = settings.model_copy(
        update={"search": settings.search.model_copy(update={"finish": finish})}
    )
    folder = compress_uniform(
        settings, linear=token, embedding=None, out=tmp_path / "native", progress=Silent()
    )
    sketch, spec = sketch_of(settings.model), LayerSpec.parse(token)
    plan = Plan({s.name: spec if s.kind == "linear" else DENSE for s in sketch.sites})
    written = read_plan(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert size == weight_bytes(sketch, written)
    tokens = {site: found.token() for site, found in written.layers.items()}
    folded = any("-folded" in token for token in tokens.values())
    # A scale that moves into the norm takes no bytes any more, nor does an order of an MLP's rows.
    assert folded == (method in ("awq", "actorder"))
    assert folded or size == weight_bytes(sketch, plan)
    for site, token in tokens.items():
        assert token.replace("-folded", "") == plan[site].token()

    export_model(folder, tmp_path / "again")
    packed = autocomp.load(folder, dtype=torch.float32)(TOKENS).logits
    again = autocomp.load(tmp_path / "again", dtype=torch.float32)(TOKENS).logits
    assert torch.equal(again, packed)
    export_model(folder, tmp_path / "dense", format="hf")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    # decoded weights are rounded to 11 significant bits: a relative error below 2^-11 each
    change = plain(TOKENS).logits - packed
    assert change.norm().item() < 2**-8 * packed.norm().item()


def test_every_method_that_bits_apply_to_is_tried():
    def quantizes(name):
        try:
            return bool(uniform_token(name, 4, 16))
        except ConfigError:
            return False

    assert {name for name in METHODS if quantizes(name)} <= {method for method, _ in METHOD_BITS}


def test_a_method_that_reads_gradients_is_made_once_from_the_dense_model(settings):
    """In one pass whatever the plan, and anew, alone, when the store has lost it."""
    bench = Workbench(settings)
    spec = LayerSpec.parse("squeezellm-w2")
    linears = [site.name for site in bench.sketch.sites if site.kind == "linear"]
    bench.compress_from_gradients({name: [spec] for name in linears})
    paths = [bench.store.path(bench.key(name, spec)) for name in linears]
    assert all(path.exists() for path in paths)
    before = bench.compressed(linears[3], spec)
    bench.candidate.apply(
        Plan({s.name: spec if s.kind == "linear" else DENSE for s in bench.sketch.sites}),
        bench.operands,
    )
    plan = bench.candidate.plan
    paths[3].unlink()
    after = bench.compressed(linears[3], spec)
    assert bench.candidate.plan == plan
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[name])


def test_k_means_is_counted_in_the_estimate(settings):
    site = next(site for site in sketch_of(settings.model).sites if site.kind == "linear")
    speed = estimate._Speed(body=1e9, single=1e9, steps=1e5)
    seconds = [
        estimate._solve_seconds(site, LayerSpec.parse(token), speed)
        for token in ("rtn-w4", "squeezellm-w3", "squeezellm-w4")
    ]
    assert seconds[2] == 2 * seconds[1] > 20 * seconds[0]


def test_passes_and_gradient_statistics_are_counted_in_the_estimate(settings, monkeypatch):
    site = next(site for site in sketch_of(settings.model).sites if site.kind == "linear")
    speed = estimate._Speed(body=1e6, single=1e6, steps=1e5)
    one, *more = (
        estimate._solve_seconds(site, LayerSpec.parse(token), speed)
        for token in (
            "rtn-w4",
            "hqq-w4",
            "lutgemm-w4",
            "rtn-w4-mse",
            "wanda-2:4",
            "shuffle+wanda-2:4+dsnot+rtn-w4",
        )
    )
    assert [seconds / one for seconds in more] == pytest.approx((20, 60, 80, 5, 60 + 5 + 20 + 1))
    monkeypatch.setattr(estimate, "_measure_speed", lambda device: speed)
    minutes = []
    for token in ("nf-w3", "squeezellm-w3"):
        space = settings.space.model_copy(update={"name": "bits", "linear": (token,)})
        asked = settings.model_copy(update={"space": space})
        minutes.append(estimate.estimate(asked).minutes["calibration"])
    assert minutes[1] > minutes[0] > 0
