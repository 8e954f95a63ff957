from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
)

from autocomp.core.errors import UnsupportedError
from autocomp.core.sketch import Sketch
from autocomp.models import build_sketch, groups, load, structure
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
    torch.testing.assert_close(outputs[0] @ parts.head_weight().T, logits)
    assert len(parts.blocks) == 2
    assert parts.get(parts.attention_name(1)) in list(parts.blocks[1].children())
    assert parts.get(parts.mlp_name(0)) in list(parts.blocks[0].children())


def test_groups_cover_every_site_once(family: Path) -> None:
    sketch = load(str(family)).sketch
    for grouping in (sketch.groups, groups(sketch), groups(sketch, fused=True)):
        assert sorted(name for group in grouping for name in group) == sorted(sketch.by_name)


def test_llama_sites(tiny_llama_path: Path) -> None:
    sketch = load(str(tiny_llama_path)).sketch
    assert [site.name for site in sketch.sites][:10] == [
        "model.embed_tokens",
        "model.layers.0.self_attn",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.self_attn.o_proj",
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
        (Phi3Config(**SMALL), "residual stream"),
        (BertConfig(**SMALL, is_decoder=True), "0 lists of 2 blocks"),
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
