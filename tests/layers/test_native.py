import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import PhiForCausalLM

import autocomp
from autocomp.core.errors import ConfigError, PlanError, StoreError
from autocomp.core.plan import Plan
from autocomp.core.spec import LayerSpec
from autocomp.cost import native_infos, weight_bytes
from autocomp.layers import Candidate, write_native
from autocomp.layers.linear import CompressedLinear
from autocomp.layers.native import WEIGHTS_FILE, native_sketch, read_extra, read_plan
from autocomp.models import LoadedModel, build_sketch
from autocomp.models.tiny import FAMILIES
from autocomp.testing.plans import compress_plan, random_plan

TOKENS = torch.arange(3, 43).reshape(2, 20)


def write(loaded: LoadedModel, plan: Plan, folder: Path, **extra: object) -> dict:
    weights = compress_plan(loaded.model, loaded.sketch, plan)
    write_native(
        folder,
        plan=plan,
        sketch=loaded.sketch,
        weights=weights,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        extra=extra,
    )
    return weights


def bypassing(loaded: LoadedModel, *roles_and_blocks: tuple[str, int]) -> Plan:
    plan = random_plan(loaded.sketch, 5, bypass=0.0)
    gone = {
        site.name: LayerSpec.parse("bypass")
        for site in loaded.sketch.subblocks()
        for role, block in roles_and_blocks
        if site.block == block and (role in site.role or role == "any")
    }
    assert gone
    return Plan(dict(plan.layers) | gone)


def test_file_size_and_logits_equal_the_candidate(tiny_model: LoadedModel, tmp_path: Path) -> None:
    model, sketch = tiny_model.model, tiny_model.sketch
    candidate = Candidate(model, sketch)
    for seed in range(6):
        plan = random_plan(sketch, seed)
        candidate.restore()
        weights = write(tiny_model, plan, tmp_path / "native")
        size = (tmp_path / "native" / WEIGHTS_FILE).stat().st_size
        assert size == weight_bytes(sketch, plan)
        candidate.apply(plan, lambda site, spec, held=weights: held[site].operands())
        loaded = autocomp.load(tmp_path / "native", dtype=torch.float32, memory="decoded")
        expected = model(TOKENS, use_cache=False).logits
        torch.testing.assert_close(
            loaded(TOKENS, use_cache=False).logits, expected, rtol=0, atol=0
        )


def test_names_in_the_file_are_the_planned_ones(tiny_model: LoadedModel, tmp_path: Path) -> None:
    plan = random_plan(tiny_model.sketch, 11, bypass=0.5)
    write(tiny_model, plan, tmp_path / "native")
    with safe_open(tmp_path / "native" / WEIGHTS_FILE, framework="pt") as file:
        assert set(file.keys()) == native_infos(tiny_model.sketch, plan).keys()


def test_bypass_leaves_no_tensor(tiny_of: Callable, tmp_path: Path) -> None:
    loaded = tiny_of("qwen3")
    infos = native_infos(loaded.sketch, bypassing(loaded, ("self_attn", 0)))
    assert not [name for name in infos if name.startswith("model.layers.0.self_attn.")]
    assert [name for name in infos if name.startswith("model.layers.1.self_attn.q_norm")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [0, 1])
def test_generate_with_cache_equals_without(
    family: str, block: int, tiny_of: Callable, tmp_path: Path
) -> None:
    loaded = tiny_of(family)
    write(loaded, bypassing(loaded, ("att", block)), tmp_path / "native")
    model = autocomp.load(tmp_path / "native", dtype=torch.float32)
    first_of_two_kinds = family == "gemma3" and block == 0  # then nothing may use cache slot 0
    tokens = {
        cached: model.generate(
            TOKENS[:1, :7], max_new_tokens=12, do_sample=False, use_cache=cached, eos_token_id=-1
        )
        for cached in (None if first_of_two_kinds else True, False)
    }
    default, without = tokens.values()
    assert default.shape == (1, 19)
    assert torch.equal(default, without)
    assert model.config.use_cache is not first_of_two_kinds
    if first_of_two_kinds:
        return
    full = model(TOKENS[:1], use_cache=False).logits
    first = model(TOKENS[:1, :9], use_cache=True)
    assert first.past_key_values.get_seq_length() == 9
    second = model(TOKENS[:1, 9:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), full)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_when_every_attention_is_bypassed(
    family: str, tiny_of: Callable, tmp_path: Path
) -> None:
    loaded = tiny_of(family)
    write(loaded, bypassing(loaded, ("att", 0), ("att", 1)), tmp_path / "native")
    model = autocomp.load(tmp_path / "native", dtype=torch.float32)
    assert model.config.use_cache is False
    found = model.generate(TOKENS[:1, :5], max_new_tokens=6, do_sample=False, eos_token_id=-1)
    again = model.generate(
        TOKENS[:1, :5], max_new_tokens=6, do_sample=False, eos_token_id=-1, use_cache=False
    )
    assert torch.equal(found, again)


def test_a_tied_head_keeps_its_bias(tiny_of: Callable, tmp_path: Path) -> None:
    config = tiny_of("phi").model.config
    config.tie_word_embeddings = True
    model = PhiForCausalLM(config).eval().requires_grad_(False)
    model.lm_head.bias.normal_()
    sketch = build_sketch(model, "tied", dtype="float16")
    assert all(site.kind != "head" for site in sketch.sites)
    loaded = LoadedModel(model, None, sketch, "", "tied")
    plan = Plan({"model.embed_tokens": LayerSpec.parse("rtn-w8")})
    weights = write(loaded, plan, tmp_path / "native")
    candidate = Candidate(model, sketch)
    candidate.apply(plan, lambda site, spec: weights[site].operands())
    found = autocomp.load(tmp_path / "native", dtype=torch.float32, memory="decoded")
    assert torch.equal(found(TOKENS).logits, model(TOKENS).logits)


def test_storage_dtype_is_the_default(tiny_of: Callable, tmp_path: Path) -> None:
    loaded = tiny_of("llama")
    write(loaded, random_plan(loaded.sketch, 0, bypass=0.0), tmp_path / "native")
    model = autocomp.load(tmp_path / "native")
    assert str(model.dtype) == f"torch.{loaded.sketch.dtype}"
    exact = autocomp.load(tmp_path / "native", dtype=torch.float32)
    cast = model.to(torch.float32)
    difference = cast(TOKENS).logits - exact(TOKENS).logits
    assert difference.abs().max() == 0, "casting must decode again, not cast packed scales"


def test_model_keeps_packed_tensors(tiny_of: Callable, tmp_path: Path) -> None:
    loaded = tiny_of("llama")
    plan = Plan({site.name: LayerSpec.parse("rtn-w4g16") for site in loaded.sketch.weights()})
    write(loaded, plan, tmp_path / "native")
    model = autocomp.load(tmp_path / "native", dtype=torch.bfloat16)
    q_proj = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(q_proj, CompressedLinear)
    assert q_proj.scale.dtype == torch.float16
    assert q_proj.weight.dtype == torch.bfloat16
    assert sum(t.nbytes for t in model.state_dict().values()) == sum(
        info.nbytes for info in native_infos(loaded.sketch, plan).values()
    )


def test_plan_extra_and_tokenizer_are_kept(tiny_of: Callable, tmp_path: Path) -> None:
    loaded = tiny_of("llama")
    plan = random_plan(loaded.sketch, 3)
    write(loaded, plan, tmp_path / "native", heldout_kl_nats=0.25)
    assert read_plan(tmp_path / "native").digest == plan.digest
    assert read_extra(tmp_path / "native") == {"heldout_kl_nats": 0.25}
    assert native_sketch(tmp_path / "native").sites == loaded.sketch.sites
    assert (tmp_path / "native" / "tokenizer.json").is_file()
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "autocomp"


@pytest.mark.parametrize("token", ["rtn-w8", "rtn-w4-sym", "magnitude-s50", "dense"])
def test_weights_of_another_plan_are_refused(
    token: str, tiny_of: Callable, tmp_path: Path
) -> None:
    loaded = tiny_of("llama")
    name = "model.layers.0.mlp.up_proj"
    weights = compress_plan(loaded.model, loaded.sketch, Plan({name: LayerSpec.parse(token)}))
    with pytest.raises(PlanError, match=name):
        write_native(
            tmp_path / "native",
            plan=Plan({name: LayerSpec.parse("rtn-w4")}),
            sketch=loaded.sketch,
            weights=weights,
            model=loaded.model,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "plan"])
def test_damage_is_noticed(damage: str, tiny_of: Callable, tmp_path: Path) -> None:
    loaded = tiny_of("llama")
    write(loaded, random_plan(loaded.sketch, 1, bypass=0.0), tmp_path / "native")
    path = tmp_path / "native" / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1000] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1000])
    elif damage == "remove":
        path.unlink()
    else:
        other = random_plan(loaded.sketch, 2, bypass=0.0)
        (tmp_path / "native" / "plan.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(StoreError):
        autocomp.load(tmp_path / "native")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.json"):
        autocomp.load(tmp_path)
