from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from autocomp.core.errors import UnsupportedError
from autocomp.core.sketch import Sketch
from autocomp.models import build_sketch, groups, load, sketch_of, structure
from autocomp.models.tiny import FAMILIES, tiny

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(request.param, tmp_path_factory.mktemp("family") / request.param)


def test_sites_and_rest_are_all_parameters(family: Path) -> None:
    loaded = load(str(family))
    model, sketch = loaded.model, loaded.sketch
    expected = {name for name, _ in model.named_parameters()}
    weights = [f"{site.name}.weight" for site in sketch.weights()]
    assert sorted([*weights, *sketch.rest]) == sorted(expected)
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    for site in sketch.weights():
        assert site.shape[0] * site.shape[1] == sizes[f"{site.name}.weight"]
    for name, info in sketch.rest.items():
        assert info.nbytes == 2 * sizes[name]


def test_linears_that_share_reads_get_the_same_input(family: Path) -> None:
    loaded = load(str(family))
    seen: dict[str, torch.Tensor] = {}

    def check(reads: str, value: torch.Tensor) -> None:
        assert torch.equal(seen.setdefault(reads, value), value)

    for site in loaded.sketch.sites:
        if site.reads:
            loaded.model.get_submodule(site.name).register_forward_pre_hook(
                lambda module, args, reads=site.reads: check(reads, args[0])
            )
    loaded.model(torch.arange(10, 30)[None])
    assert len({value.double().sum().item() for value in seen.values()}) == len(seen)
    assert set(seen) == {site.reads for site in loaded.sketch.sites if site.reads}


def test_structure_leads_to_the_logits(family: Path) -> None:
    model = load(str(family)).model
    parts = structure(model)
    outputs: list[torch.Tensor] = []
    parts.final_norm.register_forward_hook(lambda module, args, output: outputs.append(output))
    logits = model(torch.arange(10, 30)[None]).logits
    bias = parts.head_bias()
    found = outputs[0] @ parts.head_weight().T + (0 if bias is None else bias)
    torch.testing.assert_close(found, logits)
    assert len(parts.blocks) == 2
    for name in (parts.attention_name(1), *parts.linears(parts.mlp_name(1))):
        assert parts.get(name) in list(parts.blocks[1].modules())


def test_nothing_but_the_last_linears_write_to_the_residual_stream(family: Path) -> None:
    model = load(str(family)).model
    parts = structure(model)
    for name in (parts.attention_name(0), parts.mlp_name(0)):
        for parameter in parts.get(parts.linears(name)[-1]).parameters():
            parameter.zero_()
    seen: list[torch.Tensor] = []
    parts.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    parts.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.arange(10, 30)[None])
    assert torch.equal(*seen)


def test_groups_cover_every_site_once(family: Path) -> None:
    sketch = load(str(family)).sketch
    for grouping in (sketch.groups, groups(sketch), groups(sketch, fused=True)):
        assert sorted(name for group in grouping for name in group) == sorted(sketch.by_name)


def test_llama_sites(tiny_llama_path: Path) -> None:
    sketch = load(str(tiny_llama_path)).sketch
    assert [site.name for site in sketch.sites][:11] == [
        "model.embed_tokens",
        "model.layers.0.self_attn",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.self_attn.cache",
        "model.layers.0.mlp",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
    ]
    key = sketch["model.layers.1.self_attn.k_proj"]
    assert (key.kind, key.role, key.shape, key.block) == ("linear", "k_proj", (32, 64), 1)
    assert key.reads == "model.layers.1.self_attn.in"
    assert sketch["model.layers.1.mlp.down_proj"].reads == "model.layers.1.mlp.down_proj.in"
    assert sketch["model.layers.0.mlp"].members == tuple(
        f"model.layers.0.mlp.{role}_proj" for role in ("gate", "up", "down")
    )
    assert sketch["model.embed_tokens"].kind == "embedding"
    fused = groups(sketch, fused=True)
    assert ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj") in fused
    assert len(groups(sketch)) - len(fused) == 2 * 3


def test_sketch_numbers(tiny_llama_path: Path, tiny_gpt2_path: Path) -> None:
    def numbers(sketch: Sketch) -> tuple[int, ...]:
        return (
            sketch.num_layers,
            sketch.num_kv_heads,
            sketch.head_dim,
            sketch.hidden_size,
            sketch.intermediate_size,
            sketch.vocab_size,
        )

    assert numbers(load(str(tiny_llama_path)).sketch) == (2, 2, 16, 64, 128, 264)
    assert numbers(load(str(tiny_gpt2_path)).sketch) == (2, 4, 16, 64, 128, 264)


def test_gpt2_conv1d_is_seen_out_by_in(tiny_gpt2_path: Path) -> None:
    sketch = load(str(tiny_gpt2_path)).sketch
    assert sketch["transformer.h.0.attn.c_attn"].shape == (192, 64)
    assert sketch["transformer.h.0.mlp.c_proj"].shape == (64, 128)
    assert "transformer.wpe.weight" in sketch.rest


def test_opt_has_an_mlp_of_the_linears_in_its_block(tmp_path: Path) -> None:
    sketch = sketch_of(str(tiny("opt", tmp_path / "model")))
    block = "model.decoder.layers.1"
    assert sketch[f"{block}.mlp"].members == (f"{block}.fc1", f"{block}.fc2")
    assert sketch[f"{block}.fc1"].reads == f"{block}.mlp.in"
    assert sketch.owner[f"{block}.fc2"] == f"{block}.mlp"


def test_a_shared_norm_is_one_input_and_two_fused_groups(tmp_path: Path) -> None:
    sketch = sketch_of(str(tiny("phi", tmp_path / "model")))
    block = "model.layers.0"
    attention = tuple(f"{block}.self_attn.{role}_proj" for role in "qkv")
    assert {sketch[name].reads for name in (*attention, f"{block}.mlp.fc1")} == {
        f"{block}.self_attn.in"
    }
    fused = groups(sketch, fused=True)
    assert attention in fused
    assert (f"{block}.mlp.fc1",) in fused


def test_fused_linears_read_and_the_first_defined_one_writes(tmp_path: Path) -> None:
    sketch = sketch_of(str(tiny("phi3", tmp_path / "model")))
    attention, cache, mlp = (
        sketch[f"model.layers.0.{name}"] for name in ("self_attn", "self_attn.cache", "mlp")
    )
    assert attention.members == (
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.self_attn.o_proj",
        cache.name,
    )
    assert [sketch[name].shape for name in mlp.members] == [(256, 64), (64, 128)]
    assert sketch.intermediate_size == 128


def test_untied_head_is_a_site() -> None:
    model = on_meta(LlamaConfig(**SMALL, tie_word_embeddings=False))
    sketch = build_sketch(model, "x", dtype="bfloat16")
    assert sketch.sites[-1].kind == "head"
    assert (sketch.sites[-1].name, sketch.sites[-1].reads) == ("lm_head", "lm_head.in")
    assert structure(model).head_name == "lm_head"
    assert {info.dtype for info in sketch.rest.values()} == {"bfloat16"}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (MixtralConfig(**SMALL, num_local_experts=2), "expert"),
        (BertConfig(**SMALL, is_decoder=True), "0 attention and 3 MLP modules"),
        (Gemma2Config(**SMALL, head_dim=8), "final_logit_softcapping"),
        (CohereConfig(**SMALL), "logit_scale"),
        (OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=8), "projected"),
    ],
)
def test_other_structures_are_refused(config: PretrainedConfig, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        structure(on_meta(config))


def test_model_without_norm_is_refused() -> None:
    model = on_meta(LlamaConfig(**SMALL))
    model.model.norm = nn.Identity()
    with pytest.raises(UnsupportedError, match="0 norms"):
        structure(model)
