"""The finish with a block method: two streams, formats, determinism."""

import pytest
import torch

from autocomp.config import load_config
from autocomp.core.errors import ConfigError
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.methods.quantization.signround import SignRound
from autocomp.models.weights import get_weight
from autocomp.search.estimate import estimate
from autocomp.search.finish import recompress
from autocomp.search.workbench import Workbench


def workbench(model, finish="signround-20", **changes):
    settings = {
        "model": str(model),
        "data.window": 64,
        "data.calibration_tokens": 1024,
        "data.heldout_tokens": 1024,
        "data.rungs": (128,),
        "search.finish": finish,
    }
    return Workbench(load_config(None, settings | changes))


def plan_of(bench, **tokens):
    """A plan by role; ``linear`` stands for all other linears."""
    specs = {}
    for site in bench.sketch.sites:
        token = tokens.get(site.role, tokens.get("linear") if site.kind == "linear" else None)
        specs[site.name] = LayerSpec.parse(token) if token else DENSE
    return Plan(specs)


def distance(bench, weights):
    """Return the KL of weights to the base on the calibration text, nats a token."""
    meter = bench.meter(bench.calibration.input_ids)
    for name, weight in weights.items():
        bench.candidate.put(name, weight.operands())
    scores = meter.measure(bench.model, range(len(meter.reference.windows)), head_token="dense")
    bench.candidate.restore()
    return sum(scores.kl_nats) / len(scores.kl_nats)


@pytest.fixture(scope="module")
def benches(trained_llama_path):
    tokens = ("none", "signround-0", "signround-20", "signround-60")
    return {token: workbench(trained_llama_path, token) for token in tokens}


def same(first, second):
    return all(
        torch.equal(tensor, second[site].tensors[name])
        for site, weight in first.items()
        for name, tensor in weight.tensors.items()
    )


def test_no_steps_is_no_finish(benches):
    plan = plan_of(benches["none"], linear="gptq-w3g32")
    plain, still = (recompress(benches[t], plan, Silent()) for t in ("none", "signround-0"))
    assert same(plain, still)


def test_the_second_stream_starts_as_the_first_and_pays(trained_llama_path, benches):
    """In front of the first input only the embedding was rounded, to float16; less KL over all."""
    plan = plan_of(benches["none"], linear="gptq-w2g32")
    plain = recompress(benches["none"], plan, Silent())
    two = recompress(workbench(trained_llama_path, "gptaq"), plan, Silent())
    first = benches["none"].layout.block_names[0]
    for role in "qkv":
        one, other = (made[f"{first}.self_attn.{role}_proj"].to_dense() for made in (plain, two))
        assert (one != other).float().mean() < 0.1
    assert not same(plain, two)
    assert distance(benches["none"], two) < distance(benches["none"], plain)


def test_tuned_blocks_are_nearer_to_the_model_and_as_large(benches):
    """At 3 bits, on the calibration text: a fifth less KL than sequential GPTQ alone."""
    plan = plan_of(benches["none"], linear="gptq-w3g32")
    plain, tuned = (recompress(benches[t], plan, Silent()) for t in ("none", "signround-60"))
    assert {name: w.layout for name, w in plain.items()} == {
        name: w.layout for name, w in tuned.items()
    }
    assert not same(plain, tuned)
    bench = benches["none"]
    assert distance(bench, tuned) < 0.8 * distance(bench, plain)


def test_every_kind_of_site_goes_through(benches):
    """Masks, steps and corrections stay; factors and dense linears are left alone."""
    plan = plan_of(
        benches["none"],
        q_proj="awq+gptq-w3g32",
        k_proj="gptq-w3g32+lorc-r2",
        v_proj="wsvd-r8+gptq-w4",
        o_proj="rotation-hadamard+gptq-w3g32+absmax-a8",
        gate_proj="sparsegpt-2:4+gptq-w4g32",
        up_proj="wanda-s50+gptq-w3g32",
        embed_tokens="rtn-w8g32",
    )
    plain, tuned = (recompress(benches[t], plan, Silent()) for t in ("none", "signround-20"))
    for name, weight in tuned.items():
        weight.check()
        assert weight.layout == plain[name].layout
        role = name.rpartition(".")[2]
        if role in ("v_proj", "down_proj", "embed_tokens") and ".0." in name:
            assert same({name: weight}, {name: plain[name]}), name
        if "mask" in weight.tensors or "index" in weight.tensors:
            kept = (w.grid_leaf(benches["none"].weight(name)).keep for w in (weight, plain[name]))
            assert torch.equal(*kept) or ".0." not in name  # later masks see other inputs
    for role in ("q_proj", "k_proj", "o_proj", "gate_proj", "up_proj"):
        changed = [
            name
            for name in tuned
            if name.endswith(f"0.self_attn.{role}") or name.endswith(f"0.mlp.{role}")
        ]
        assert all(not same({name: tuned[name]}, plain) for name in changed), role


def test_a_dropped_subblock_and_a_compressed_cache_go_through(benches):
    bench = benches["signround-20"]
    specs = dict(plan_of(bench, linear="gptq-w3g32").layers)
    dropped = next(site for site in bench.sketch.subblocks() if site.block == 0)
    specs[dropped.name] = LayerSpec.parse("bypass")
    weights = recompress(bench, Plan(specs), Silent())
    assert weights.keys() == {
        site.name for site in bench.sketch.weights() if site.name not in dropped.members
    }


def test_the_model_is_given_back(benches):
    bench = benches["signround-20"]
    recompress(bench, plan_of(bench, linear="gptq-w3g32"), Silent())
    for site in bench.sketch.weights():
        original = bench.weight(site.name).to(bench.dtype)
        assert torch.equal(get_weight(bench.model, site.name), original), site.name


def test_the_original_stream_sees_the_original_model(benches, monkeypatch):
    """Targets are the hidden states of the dense model, whatever is compressed in front."""
    bench, seen = benches["signround-20"], []
    monkeypatch.setattr(SignRound, "compress", lambda self, view, spec: seen.append(view) or {})
    recompress(bench, plan_of(bench, linear="rtn-w2g32"), Silent())
    walker = bench.walker()
    for index, (_, batches) in enumerate(walker.walk()):
        targets = walker.advance(index, batches)
        view = seen[index]
        for target, batch in zip(view.targets, targets, strict=True):
            assert torch.equal(target, batch.hidden)
        if index:
            assert not torch.equal(view.inputs[0], batches[0].hidden)
    assert len(seen) == bench.sketch.num_layers


def test_gpt2_stores_its_weights_the_other_way_round(tiny_gpt2_path):
    bench = workbench(tiny_gpt2_path)
    plan = plan_of(bench, linear="gptq-w3g32")
    tuned = recompress(bench, plan, Silent())
    plain = recompress(workbench(tiny_gpt2_path, "none"), plan, Silent())
    assert not same(tuned, plain)
    for name, weight in tuned.items():
        assert weight.layout == plain[name].layout


def test_an_unknown_finish_is_refused_with_near_names(trained_llama_path):
    with pytest.raises(
        ConfigError, match=r"unknown finish 'signrund-5'.*Did you mean 'signround'"
    ):
        workbench(trained_llama_path, "signrund-5")
    with pytest.raises(ConfigError, match=r"'gptq' is no method that tunes blocks"):
        workbench(trained_llama_path, "gptq-w4")
    with pytest.raises(ConfigError, match=r"expected signround-<steps>"):
        workbench(trained_llama_path, "signround-many")


def test_the_estimate_counts_the_steps(trained_llama_path):
    minutes = [
        estimate(
            workbench(trained_llama_path, token, **{"budget.max_bytes": None}).config
        ).minutes["finish"]
        for token in ("none", "signround-20000")
    ]
    assert minutes[1] > 2 * minutes[0]
