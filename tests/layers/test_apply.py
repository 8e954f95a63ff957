from collections.abc import Callable

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from autocomp.core.plan import Plan
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.formats.base import Operands
from autocomp.layers.apply import BypassedAttention, Candidate, attention_names, number_caches
from autocomp.models import LoadedModel, build_sketch
from autocomp.testing.plans import compress_plan, random_plan

TOKENS = torch.arange(5, 29).reshape(1, 24)
BYPASS = LayerSpec.parse("bypass")


class Recorder:
    """A fetch that remembers what it was asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.weights = {}
        self.asked: list[str] = []
        self.loaded = loaded

    def prepare(self, plan: Plan) -> Plan:
        self.weights = compress_plan(self.loaded.model, self.loaded.sketch, plan)
        return plan

    def __call__(self, site: str, spec: LayerSpec) -> Operands:
        self.asked.append(site)
        return self.weights[site].operands()


def never(site: str, spec: LayerSpec) -> Operands:
    raise AssertionError(f"{site} needs no fetch for {spec}")


def logits(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(TOKENS, use_cache=False).logits


def test_restore_gives_the_model_back_exactly(tiny_model: LoadedModel) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.model.state_dict().items()}
    candidate, fetch = Candidate(tiny_model.model, tiny_model.sketch), Recorder(tiny_model)
    candidate.apply(fetch.prepare(random_plan(tiny_model.sketch, 0, bypass=0.6)), fetch)
    candidate.restore()
    after = tiny_model.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_only_differences_are_fetched(tiny_of: Callable) -> None:
    loaded = tiny_of("llama")
    candidate, fetch = Candidate(loaded.model, loaded.sketch), Recorder(loaded)
    linears = [site.name for site in loaded.sketch.weights() if site.kind == "linear"]
    first = fetch.prepare(Plan(dict.fromkeys(linears, LayerSpec.parse("rtn-w4g16"))))
    candidate.apply(first, fetch)
    assert fetch.asked == linears
    candidate.restore()
    second = fetch.prepare(Plan(dict(first.layers) | {linears[3]: LayerSpec.parse("rtn-w3g16")}))
    candidate.apply(first, fetch)
    fetch.asked.clear()
    assert candidate.apply(second, fetch) == 1
    assert fetch.asked == [linears[3]]
    assert candidate.apply(second, fetch) == 0


def test_path_does_not_matter(tiny_model: LoadedModel) -> None:
    fetch = Recorder(tiny_model)
    plans = [random_plan(tiny_model.sketch, seed, bypass=0.5) for seed in range(4)]
    stores = [compress_plan(tiny_model.model, tiny_model.sketch, plan) for plan in plans]
    direct = []
    for plan, fetch.weights in zip(plans, stores, strict=True):
        candidate = Candidate(tiny_model.model, tiny_model.sketch)
        candidate.apply(plan, fetch)
        direct.append(logits(tiny_model))
        candidate.restore()
    candidate = Candidate(tiny_model.model, tiny_model.sketch)
    for index in (2, 0, 3, 1, 2):
        fetch.weights = stores[index]
        candidate.apply(plans[index], fetch)
        assert torch.equal(logits(tiny_model), direct[index])


def test_dense_sites_are_rounded_to_the_storage_dtype(tiny_of: Callable) -> None:
    loaded = tiny_of("llama")
    name = loaded.sketch.sites[-1].name
    before = loaded.model.get_submodule(name).weight.clone()
    storage = getattr(torch, loaded.sketch.dtype)
    assert not torch.equal(before, before.to(storage).float())
    Candidate(loaded.model, loaded.sketch).apply(Plan({}), Recorder(loaded))
    assert torch.equal(loaded.model.get_submodule(name).weight, before.to(storage).float())


def test_tied_head_follows_the_embedding(tiny_of: Callable) -> None:
    for family, name in (("llama", "model.embed_tokens"), ("gpt2", "transformer.wte")):
        loaded = tiny_of(family)
        candidate = Candidate(loaded.model, loaded.sketch)
        zeros = Operands(torch.zeros(loaded.sketch[name].shape))
        candidate.apply(Plan({name: LayerSpec.parse("rtn-w4")}), lambda *_, z=zeros: z)
        assert logits(loaded).abs().max() == 0
        candidate.restore()
        assert logits(loaded).abs().max() > 0


def test_bypass_removes_exactly_the_sublayer(tiny_model: LoadedModel) -> None:
    model, sketch = tiny_model.model, tiny_model.sketch
    candidate = Candidate(model, sketch)
    candidate.apply(Plan({}), never)
    for site in sketch.subblocks():
        candidate.apply(Plan({site.name: BYPASS}), never)
        found = logits(tiny_model)
        candidate.apply(Plan({}), never)
        linears = [member for member in site.members if sketch[member].kind == "linear"]
        writer = model.get_submodule(linears[-1])
        kept = [parameter.clone() for parameter in writer.parameters()]
        for parameter in writer.parameters():
            parameter.zero_()
        torch.testing.assert_close(found, logits(tiny_model), rtol=0, atol=1e-6)
        for parameter, value in zip(writer.parameters(), kept, strict=True):
            parameter.copy_(value)


def test_low_precision_model_keeps_its_dtype(tiny_of: Callable) -> None:
    loaded = tiny_of("llama")
    loaded.model.to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    candidate, fetch = Candidate(loaded.model, loaded.sketch), Recorder(loaded)
    candidate.apply(fetch.prepare(random_plan(loaded.sketch, 1)), fetch)
    assert loaded.model.dtype == torch.bfloat16
    candidate.restore()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_caches_keep_to_their_layer_type() -> None:
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=4,
        use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention"] * 2,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    sketch = build_sketch(model, "mixed", dtype="float16")
    names = attention_names(sketch)
    candidate = Candidate(model, sketch)
    candidate.apply(Plan({names[0]: BYPASS, names[1]: BYPASS}), never)
    assert [model.get_submodule(name).layer_idx for name in names[2:]] == [0, 1]
    tokens = TOKENS[:, :12]
    full = model(tokens, use_cache=False).logits
    first = model(tokens[:, :7], use_cache=True)
    second = model(tokens[:, 7:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), full)
    candidate.apply(Plan({names[0]: BYPASS, names[2]: BYPASS}), never)
    assert model.config.use_cache is False
    assert model.generation_config.use_cache is False
    candidate.restore()
    assert model.config.use_cache is True
    assert [model.get_submodule(name).layer_idx for name in names] == [0, 1, 2, 3]


def test_slot_zero_is_unused_when_nothing_attends(tiny_of: Callable) -> None:
    loaded = tiny_of("llama")
    names = attention_names(loaded.sketch)
    assert number_caches(loaded.model, names)
    for name in names:
        loaded.model.set_submodule(name, BypassedAttention())
    assert not number_caches(loaded.model, names)


def test_failed_fetch_leaves_a_usable_candidate(tiny_of: Callable) -> None:
    loaded = tiny_of("llama")
    candidate, fetch = Candidate(loaded.model, loaded.sketch), Recorder(loaded)
    plan = fetch.prepare(random_plan(loaded.sketch, 4, bypass=0.0))
    candidate.apply(plan, fetch)
    expected = logits(loaded)
    candidate.restore()
    lost = [site for site in plan.layers if plan[site] != DENSE][5]
    broken = {name: weight for name, weight in fetch.weights.items() if name != lost}
    whole, fetch.weights = fetch.weights, broken
    with pytest.raises(KeyError):
        candidate.apply(plan, fetch)
    fetch.weights = whole
    candidate.apply(plan, fetch)
    assert torch.equal(logits(loaded), expected)
