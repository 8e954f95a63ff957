"""Token windows: fixed, evenly spread, the same in every process."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autocomp.core.errors import ConfigError
from autocomp.core.seeds import SeedTree
from autocomp.data.corpus import Corpus, Split


@dataclass(frozen=True)
class Windows:
    """Windows of consecutive tokens that do not overlap.

    Args:
        input_ids: (n, length) int64; of a corpus every prefix is spread over the text.
        corpus: Name of the corpus.
        split: Part that they come from.
        length: Tokens a window.
        text_bytes: UTF-8 bytes of the windows' text, for bits per byte.
        digest: Sha256 over the tokens, hexadecimal.
    """

    input_ids: Tensor
    corpus: str
    split: Split
    length: int
    text_bytes: int
    digest: str

    @property
    def tokens(self) -> int:
        """Tokens in all windows."""
        return self.input_ids.numel()


def windows(
    corpus: Corpus,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    length: int,
    seed: int = 0,
    fewer: bool = False,
) -> Windows:
    """Cut evenly spread windows from one part of a corpus.

    The documents are joined by blank lines and tokenised without special tokens; of N tokens,
    window i of n starts at ``i · ⌊N / n⌋``. The windows are then put in a seeded order, so that a
    prefix is a smaller sample of the same text. For nested samples take prefixes of the largest
    request: a smaller request starts its windows elsewhere.

    Args:
        corpus: Text.
        split: ``calibration``, ``search`` or ``heldout``.
        tokenizer: The model's.
        tokens: Tokens wanted; rounded down to whole windows.
        length: Tokens a window.
        seed: Seed of the order.
        fewer: Take as many windows as there are where the text is shorter.

    Raises:
        ConfigError: If the text is too short or less than one window is asked for.
    """
    if length < 2 or tokens < length:
        raise ConfigError(
            f"{tokens} tokens in windows of {length}: at least one window of at least 2 tokens is "
            "needed."
        )
    text = "\n\n".join(corpus.documents(split))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    count = tokens // length
    if fewer:
        count = max(1, min(count, len(ids) // length))
    if len(ids) < count * length:
        raise ConfigError(
            f"the {split} part of {corpus.name} holds {len(ids)} tokens, {count * length} were "
            f"asked for. Ask for at most {len(ids) // length * length} in windows of {length} or "
            "give a longer text."
        )
    stride = len(ids) // count
    order = SeedTree(seed).child("windows").numpy().permutation(count)
    chosen = torch.stack([ids[start * stride : start * stride + length] for start in order])
    return windows_of(chosen, tokenizer, corpus.name, split)


def windows_of(
    input_ids: Tensor, tokenizer: PreTrainedTokenizerBase, corpus: str, split: Split
) -> Windows:
    """Return token ids as windows.

    Args:
        input_ids: (n, length) int64, on the CPU.
        tokenizer: The model's.
        corpus: What figures are labelled with.
        split: Part that the ids belong to.
    """
    length = input_ids.shape[1]
    decoded = tokenizer.batch_decode(input_ids, clean_up_tokenization_spaces=False)
    return Windows(
        input_ids=input_ids,
        corpus=corpus,
        split=split,
        length=length,
        text_bytes=sum(len(part.encode()) for part in decoded),
        digest=hashlib.sha256(f"{length}\n".encode() + input_ids.numpy().tobytes()).hexdigest(),
    )


def interleave(first: Windows, second: Windows, tokenizer: PreTrainedTokenizerBase) -> Windows:
    """Return the windows of both in turn, labelled ``first+second``, as part of the first's split.

    Args:
        first: As many windows as ``second``, or one more.
        second: Windows of the same length.
        tokenizer: The model's.
    """
    ids = first.input_ids.new_empty(len(first.input_ids) + len(second.input_ids), first.length)
    ids[::2], ids[1::2] = first.input_ids, second.input_ids
    return windows_of(ids, tokenizer, f"{first.corpus}+{second.corpus}", first.split)
