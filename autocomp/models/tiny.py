"""Tiny random models built from configs, for tests and for trying things without a download."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from autocomp.core.errors import ConfigError
from autocomp.core.registry import nearest

_SPECIAL = ("<pad>", "<s>", "</s>")
_VOCABULARY = 264
_DECODER = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ONE_KEY_PER_QUERY = {
    key: value for key, value in _DECODER.items() if key not in ("num_key_value_heads", "head_dim")
}
_GPT2 = {
    "vocab_size": _VOCABULARY,
    "n_embd": 64,
    "n_inner": 128,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OPT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "init_std": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA3 = {
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
_FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _DECODER | {"tie_word_embeddings": True}),
    "llama-untied": (LlamaConfig, _DECODER | {"tie_word_embeddings": False}),
    "mistral": (MistralConfig, _DECODER | {"tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, _DECODER | {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, _DECODER | {"tie_word_embeddings": True}),
    "gemma": (GemmaConfig, _DECODER | {"tie_word_embeddings": True}),
    "gemma3": (Gemma3TextConfig, _DECODER | _GEMMA3),
    "phi": (PhiConfig, _ONE_KEY_PER_QUERY | {"tie_word_embeddings": False}),
    "phi3": (Phi3Config, _DECODER | {"tie_word_embeddings": False}),
    "gpt-neox": (GPTNeoXConfig, _ONE_KEY_PER_QUERY | {"tie_word_embeddings": False}),
    "opt": (OPTConfig, _OPT),
    "gpt2": (GPT2Config, _GPT2),
}
FAMILIES = tuple(_FAMILIES)


def tiny(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny random model (2 blocks, width 64) with a byte tokenizer and return its folder.

    Biases and norm weights are random too, so that code which forgets them is noticed.

    Args:
        family: One of ``FAMILIES``.
        folder: Where to; made when missing.
        seed: Seed of the weights.

    Raises:
        ConfigError: If the family is unknown.
    """
    if family not in _FAMILIES:
        raise ConfigError(
            f"unknown tiny family {family!r}.{nearest(family, list(FAMILIES))} "
            f"Known: {', '.join(FAMILIES)}."
        )
    kind, values = _FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(kind(**values))
        _perturb_vectors(model)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def train_tiny(folder: Path, text: str, *, steps: int = 200, seed: int = 0) -> float:
    """Train a tiny model on a text in place, so that compressing it costs something.

    Args:
        folder: A folder that :func:`tiny` wrote.
        text: Training text, at least a few hundred characters.
        steps: Steps of AdamW, each on 16 windows of 64 tokens.
        seed: Seed of the windows.

    Returns:
        The last step's cross-entropy in nats a token.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    ids = torch.tensor(byte_tokenizer()(text)["input_ids"])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    loss = torch.tensor(torch.nan)
    for _ in range(steps):
        starts = torch.randint(len(ids) - 64, (16, 1), generator=generator)
        batch = ids[starts + torch.arange(64)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return loss.item()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte and three special tokens; any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos
    )


@torch.no_grad()
def _perturb_vectors(model: PreTrainedModel) -> None:
    """Add noise to biases and norm weights, which initialisation leaves at zero and one."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
