"""Measuring a model from its folder, as a user would load it."""

import math
from dataclasses import dataclass

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from autocomp.core.errors import ConfigError
from autocomp.data import load_corpus, windows
from autocomp.evaluate.divergence import BaseReference, DivergenceMeter
from autocomp.layers.native import is_native
from autocomp.layers.native import load as load_native
from autocomp.models import load
from autocomp.models.device import body_dtype, resolve_device

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class FileScores:
    """A model measured on the held-out part of a text.

    Args:
        perplexity: ``exp`` of the mean over windows of the mean cross entropy.
        bits_per_byte: Cross entropy in bits over the UTF-8 bytes of the windows; comparable across
            tokenizers.
        corpus: Name of the text.
        window: Window length, tokens.
        tokens: Tokens read.
        kl_nats: KL from the base model, nats a token; ``None`` without one.
        kl_se: Its standard error over windows.
        base_perplexity: Perplexity of the base model.
    """

    perplexity: float
    bits_per_byte: float
    corpus: str
    window: int
    tokens: int
    kl_nats: float | None = None
    kl_se: float | None = None
    base_perplexity: float | None = None


def load_any(path: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer of a native folder, a Hugging Face folder or a model id."""
    dtype = body_dtype(device)
    if is_native(path):
        model = load_native(path, device=str(device), dtype=dtype)
        return model, AutoTokenizer.from_pretrained(path)
    loaded = load(path, device=str(device), dtype=dtype)
    return loaded.model, loaded.tokenizer


def evaluate_path(
    path: str,
    *,
    corpus: str = "pydoc",
    tokens: int = 16384,
    window: int = 512,
    device: str = "auto",
    base: str | None = None,
) -> FileScores:
    """Measure a model on the held-out part of a text, and its KL from a base model.

    Args:
        path: Native or Hugging Face folder, or a model id.
        corpus: Name of a corpus, or a ``.txt``, ``.raw`` or ``.jsonl`` file.
        tokens: Tokens to read.
        window: Window length, tokens; perplexities of different lengths do not compare.
        device: ``auto``, ``cpu`` or ``cuda[:n]``.
        base: Model to compare with; it must share the vocabulary.

    Raises:
        ConfigError: If a name is unknown, the text too short, or the vocabularies differ.
    """
    place = resolve_device(device)
    model, tokenizer = load_any(path, place)
    text = windows(load_corpus(corpus), "heldout", tokenizer, tokens=tokens, length=window)
    batch = max(1, BATCH_TOKENS // window)
    anchor = model if base is None else load_any(base, place)[0]
    if anchor.config.vocab_size != model.config.vocab_size:
        raise ConfigError(
            f"{path} has {model.config.vocab_size} tokens and {base} has "
            f"{anchor.config.vocab_size}; a KL needs one vocabulary."
        )
    reference = BaseReference(anchor, text.input_ids, batch)
    count = len(text.input_ids)
    if base is None:
        nll, kl = reference.nll_nats(), None
    else:
        scores = DivergenceMeter(reference).measure(model, range(count), head_token=path)
        nll, kl = list(scores.nll_nats), torch.tensor(scores.kl_nats, dtype=torch.float64)
    mean = math.fsum(nll) / count
    return FileScores(
        perplexity=math.exp(mean),
        bits_per_byte=mean * count * (window - 1) / math.log(2) / text.text_bytes,
        corpus=corpus,
        window=window,
        tokens=text.tokens,
        kl_nats=None if kl is None else kl.mean().item(),
        kl_se=None if kl is None or count < 2 else (kl.std() / count**0.5).item(),
        base_perplexity=(
            None if base is None else math.exp(math.fsum(reference.nll_nats()) / count)
        ),
    )
