"""Folding a scale into what the producers name leaves the model as it was."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig

from autocomp.models import get_weight, load, set_weight, structure
from autocomp.models.producers import Producer, producers, row_makers
from autocomp.models.structure import Structure
from autocomp.models.tiny import FAMILIES, tiny

TOKENS = torch.arange(10, 58).reshape(2, 24)
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}


def parts_of(family: str, folder: Path, dtype: torch.dtype = torch.float64) -> Structure:
    return structure(load(str(tiny(family, folder / family)), dtype=dtype).model)


def built(config: PretrainedConfig) -> Structure:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return structure(model)


def fold(parts: Structure, producer: Producer, scale: torch.Tensor) -> None:
    """Divide the producer's rows by ``scale`` (rows,) and multiply the readers' columns."""
    module = parts.get(producer.name)
    if producer.kind == "norm":
        module.weight.copy_((producer.offset + module.weight) / scale - producer.offset)
    else:
        weight = get_weight(parts.model, producer.name)
        set_weight(parts.model, producer.name, weight / scale[:, None])
    if producer.has_bias:
        module.bias.div_(scale)
    for reader in producer.readers:
        columns = scale[producer.rows]
        set_weight(parts.model, reader, get_weight(parts.model, reader) * columns)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_positive_scale_folds(family: str, tmp_path: Path) -> None:
    parts = parts_of(family, tmp_path)
    expected = parts.model(TOKENS).logits
    generator = torch.Generator().manual_seed(1)
    found = producers(parts)
    for producer in found.values():
        rows = get_weight(parts.model, producer.name).shape[0]
        scale = torch.ones(rows, dtype=torch.float64)
        used = producer.rows.unique()
        drawn = torch.rand(len(used), generator=generator, dtype=torch.float64)
        scale[used] = 0.25 * 16**drawn  # from a quarter to four
        fold(parts, producer, scale)
        logits = parts.model(TOKENS).logits
        # Norms and softmax compute in fp32: nothing but their rounding (2^-24) may show.
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max(), producer.name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_input_folds_but_what_a_gelu_makes(family: str, tmp_path: Path) -> None:
    parts = parts_of(family, tmp_path, torch.float32)
    reads, found = parts.reads(), producers(parts)
    after_gelu = {"phi", "gpt-neox", "gpt2"}
    absent = {reads[parts.linears(mlp)[-1]] for mlp in parts.mlp_names}
    assert set(reads.values()) - found.keys() == (absent if family in after_gelu else set())
    for name, producer in found.items():
        assert set(producer.readers) == {linear for linear in reads if reads[linear] == name}


@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision_says_the_same(family: str, tmp_path: Path) -> None:
    exact, rounded = (
        producers(parts_of(family, tmp_path, dtype)) for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact.keys() == rounded.keys()
    for name, producer in exact.items():
        assert producer.name == rounded[name].name
        assert torch.equal(producer.rows, rounded[name].rows)


def test_heads_that_share_values_share_rows(tmp_path: Path) -> None:
    producer = producers(parts_of("llama", tmp_path))["model.layers.1.self_attn.o_proj.in"]
    assert producer.name == "model.layers.1.self_attn.v_proj"
    first, second = torch.arange(16), torch.arange(16, 32)
    assert torch.equal(producer.rows, torch.cat([first, first, second, second]))


def test_rows_of_fused_linears(tmp_path: Path) -> None:
    phi3 = producers(parts_of("phi3", tmp_path))
    values, up = (
        phi3[f"model.layers.0.{name}.in"] for name in ("self_attn.o_proj", "mlp.down_proj")
    )
    assert values.name == "model.layers.0.self_attn.qkv_proj"
    assert sorted(values.rows.unique().tolist()) == list(range(64 + 32, 64 + 64))
    assert up.name == "model.layers.0.mlp.gate_up_proj"
    assert torch.equal(up.rows, torch.arange(128, 256))
    neox = producers(parts_of("gpt-neox", tmp_path))["gpt_neox.layers.0.attention.dense.in"]
    # query, key and value of 16 follow one another in each of the four heads
    heads = [torch.arange(16) + 48 * head + 32 for head in range(4)]
    assert torch.equal(neox.rows, torch.cat(heads))


def test_norms_say_their_offset_bias_and_readers(tmp_path: Path) -> None:
    gemma = producers(parts_of("gemma3", tmp_path))["model.layers.0.mlp.in"]
    assert (gemma.name, gemma.kind, gemma.offset, gemma.has_bias) == (
        "model.layers.0.pre_feedforward_layernorm", "norm", 1.0, False,
    )  # fmt: skip
    phi = producers(parts_of("phi", tmp_path))["model.layers.0.self_attn.in"]
    assert (phi.kind, phi.offset, phi.has_bias) == ("norm", 0.0, True)
    assert phi.readers[-1] == "model.layers.0.mlp.fc1"
    assert len(phi.readers) == 4


def test_activation_decides_what_folds() -> None:
    small_opt = SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32}
    relu, gelu = (
        producers(built(OPTConfig(**small_opt, activation_function=name)))
        for name in ("relu", "gelu")
    )
    assert relu.keys() - gelu.keys() == {f"model.decoder.layers.{i}.fc2.in" for i in (0, 1)}
    down = "model.layers.0.mlp.down_proj.in"
    small_llama = LlamaConfig(**SMALL, intermediate_size=64, hidden_act="gelu")
    assert producers(built(small_llama))[down].name.endswith("up_proj")


def test_a_norm_that_the_residual_stream_reads_too_does_not_fold() -> None:
    parts = built(LlamaConfig(**SMALL, intermediate_size=64))
    whole = producers(parts)
    for name in parts.mlp_names:
        parts.get(name).register_forward_hook(lambda _, args, output: output + args[0])
    assert whole.keys() - producers(parts).keys() == {f"{name}.in" for name in parts.mlp_names}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_make_an_mlps_channels_move_together(family: str, tmp_path: Path) -> None:
    """Each weight moved as a whole: as with hooks, but in the weights and through the biases."""
    parts = parts_of(family, tmp_path)
    expected, found = parts.model(TOKENS).logits, row_makers(parts)
    reads = parts.reads()
    assert found.keys() == {reads[parts.linears(mlp)[-1]] for mlp in parts.mlp_names}
    for makers in found.values():
        (writer,) = {reader for maker in makers for reader in maker.readers}
        width = get_weight(parts.model, writer).shape[1]
        order = torch.randperm(width, generator=torch.Generator().manual_seed(1))
        for maker in makers:
            rows = torch.arange(get_weight(parts.model, maker.name).shape[0])
            rows[maker.rows] = maker.rows[order]
            weight = get_weight(parts.model, maker.name)
            set_weight(parts.model, maker.name, weight[rows].clone())
            if maker.has_bias:
                bias = parts.get(maker.name).bias
                bias.copy_(bias[rows].clone())
        moved = get_weight(parts.model, writer)[:, order].clone()
        set_weight(parts.model, writer, moved)
    logits = parts.model(TOKENS).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
