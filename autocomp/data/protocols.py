"""The perplexity protocols of the papers: which text, tokenised how, cut where.

They come from the code that GPTQ published and that later papers kept, so that a figure measured
here compares with theirs at the same window length, and at no other.

| protocol | text | rows joined by | windows |
|---|---|---|---|
| ``wikitext2`` | WikiText-2 raw, test | a blank line | all, one after the other |
| ``ptb`` | Penn Treebank, validation | a blank line | all, one after the other |
| ``ptb-new`` | Penn Treebank, test | a space | all, one after the other |
| ``c4`` | C4 English, first validation file | not joined | 256 random ones of random documents |
| ``c4-new`` | the first 1,100 documents of it | a space | the first 256 |

A joined text is tokenised once, with the special tokens that the tokenizer adds by itself: one BOS
before everything, in no other window. Its windows do not overlap; an incomplete last one is
dropped. The tokenizer is the caller's: papers used the slow one, with which some fast ones
disagree.

A row of WikiText is a line of its file with the line's end, or ``""`` for a blank line; the empty
rows, a third of all, count. Copies in circulation have lost their blank lines: such a ``.raw``
file gives other tokens, and where blank lines were cannot be told from the rest, so it is refused.

Reference: Frantar et al. 2022, https://arxiv.org/abs/2210.17323.
"""

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autocomp.core.errors import ConfigError
from autocomp.core.registry import nearest
from autocomp.data.corpus import hub_rows, json_lines, paragraphs, read_text
from autocomp.data.windows import Windows, windows_of

_JSON = (".jsonl", ".json")
_PLAIN = (".txt", ".raw")


def protocol_windows(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    data_dir: str | Path | None = None,
    file: str | Path | None = None,
    limit: int | None = None,
) -> Windows:
    """Return the windows of a protocol, in its order.

    Args:
        name: One of ``PROTOCOLS``.
        tokenizer: The model's.
        length: Tokens a window.
        data_dir: Folder that the protocol's file lies in, at any depth, under its usual name;
            without it and without ``file`` the text comes from the hub.
        file: The file itself, of any name: ``.jsonl`` or ``.json`` with a ``text`` field a row, or
            ``.txt`` or ``.raw`` with a row a line, for C4 a document a paragraph; all of them also
            as ``.gz``.
        limit: Windows to keep, from the first; ``None`` is what the protocol takes.

    Raises:
        ConfigError: If the name is unknown, the file is missing, damaged or one of several, or the
            text is too short for one window.
    """
    if name not in PROTOCOLS:
        raise ConfigError(
            f"unknown protocol {name!r}.{nearest(name, list(PROTOCOLS))} "
            f"Known: {', '.join(PROTOCOLS)}."
        )
    if length < 2 or (limit is not None and limit < 1):
        raise ConfigError(
            f"{name}: a window needs at least 2 tokens and a limit is at least 1 window, got a "
            f"length of {length} and a limit of {limit}."
        )
    protocol = PROTOCOLS[name]
    if file is None and data_dir is not None:
        file = _find(name, Path(data_dir).expanduser())
    rows: Iterable[str]
    if file is None:
        rows = hub_rows(protocol.corpus, protocol.split, protocol.hub_file)
    else:
        rows = _read(protocol, Path(file).expanduser())
    chosen = list(islice(rows, protocol.most_rows))
    most = min(protocol.most_windows, limit or protocol.most_windows)
    if protocol.join is None:
        ids = _crops(name, chosen, tokenizer, length, most)
    else:
        ids = _consecutive(name, protocol.join.join(chosen), tokenizer, length, most)
    found = windows_of(ids, tokenizer, name, "heldout")
    return replace(found, text_bytes=found.text_bytes - _start_bytes(ids, tokenizer))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text, with the special ones that the tokenizer adds."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def _consecutive(
    name: str, text: str, tokenizer: PreTrainedTokenizerBase, length: int, most: int
) -> Tensor:
    """Cut a text into windows that follow one another, (n, length)."""
    ids = _encode(tokenizer, text)
    count = len(ids) // length
    if not count:
        raise ConfigError(
            f"{name}: the text holds {len(ids)} tokens, less than one window of {length}. Give "
            "a longer text or ask for shorter windows."
        )
    count = min(count, most)
    return torch.tensor(ids[: count * length]).view(count, length)


def _crops(
    name: str,
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
) -> Tensor:
    """Cut random windows of random documents that are longer than one, (count, length).

    The draws are those of the papers: the document, then the start, of ``random`` seeded with 0.
    """
    encoded = cache(lambda index: _encode(tokenizer, documents[index]))
    draw = random.Random(0)
    rows: list[list[int]] = []
    short: dict[int, int] = {}
    while len(rows) < count:
        if len(short) == len(documents):
            raise ConfigError(
                f"{name}: the longest of {len(documents)} documents holds "
                f"{max(short.values(), default=0)} tokens, and windows of {length} are cut out of "
                "longer ones. Give longer documents or ask for shorter windows."
            )
        index = draw.randint(0, len(documents) - 1)
        ids = encoded(index)
        if len(ids) <= length:  # the papers' code stops with an error at one of equal length
            short[index] = len(ids)
            continue
        start = draw.randint(0, len(ids) - length - 1)
        rows.append(ids[start : start + length])
    return torch.tensor(rows)


def _start_bytes(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the bytes that the BOS tokens of some windows decode to; they are no text."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return 0
    (text,) = tokenizer.batch_decode([[bos]])
    return int((ids == bos).sum()) * len(text.encode())


def _read(protocol: "Protocol", path: Path) -> list[str]:
    """Return the rows of a local file."""
    kind = _kind(path)
    if kind not in (*_JSON, *_PLAIN):
        raise ConfigError(
            f"{path} is no text that a protocol reads; give a {', '.join((*_JSON, *_PLAIN))} "
            "file, or one of these as .gz."
        )
    return (json_lines if kind in _JSON else protocol.rows)(path, read_text(path))


def _kind(path: Path) -> str:
    """Return the suffix of a file, that of what is packed in a ``.gz``."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _find(name: str, folder: Path) -> Path:
    """Return the protocol's file in a folder; of several names the first that is there."""
    patterns = PROTOCOLS[name].files
    for pattern in patterns:
        found = [
            path
            for path in sorted(folder.rglob(pattern))
            if path.is_file() and _kind(path) in (*_JSON, *_PLAIN)
        ]
        if len(found) > 1:
            raise ConfigError(
                f"{name}: {folder} holds several files called {pattern}: "
                f"{', '.join(map(str, found))}. Give a folder that holds one."
            )
        if found:
            return found[0]
    raise ConfigError(
        f"{name}: {folder} holds no file called {' or '.join(patterns)}. Give a folder that does, "
        "or none to read from the hub."
    )


def _wikitext_rows(path: Path, text: str) -> list[str]:
    """Return lines with their ends, and ``""`` for each blank one."""
    rows = [line if line.strip() else "" for line in StringIO(text)]
    if _kind(path) == ".raw" and "" not in rows:
        raise ConfigError(
            f"{path} has no blank lines. WikiText has them, and a perplexity of a copy that lost "
            "them compares with no paper's. Give the original file or its rows as .jsonl; a file "
            "called .txt is read as it is."
        )
    return rows


def _sentences(path: Path, text: str) -> list[str]:
    """Return lines without the space around them; the path is not read."""
    return [line.strip() for line in StringIO(text)]


@dataclass(frozen=True, slots=True)
class Protocol:
    """A text and how it is cut.

    Args:
        corpus: Data set on the hub.
        split: Part of it.
        files: Usual names of that part on disk, the best first.
        rows: Rows of a file that is plain text.
        join: What stands between rows; ``None`` cuts random windows of single rows.
        hub_file: The only file of the data set that is read.
        most_rows: Rows that are read, from the first.
        most_windows: Windows that are kept.
    """

    corpus: str
    split: str
    files: tuple[str, ...]
    rows: Callable[[Path, str], list[str]]
    join: str | None = None
    hub_file: str | None = None
    most_rows: int | None = None
    most_windows: int = sys.maxsize


_C4_FILE = "c4-validation.00000-of-00008.json"
_C4 = Protocol(
    corpus="c4",
    split="validation",
    files=(_C4_FILE, f"{_C4_FILE}.gz"),
    rows=paragraphs,
    hub_file=f"en/{_C4_FILE}.gz",
    most_windows=256,
)
PROTOCOLS = {
    "wikitext2": Protocol(
        corpus="wikitext2",
        split="test",
        files=("raw.test.rows.jsonl", "wiki.test.raw", "*wikitext*test*"),
        rows=_wikitext_rows,
        join="\n\n",
    ),
    "ptb": Protocol("ptb", "validation", ("ptb.valid.txt",), _sentences, join="\n\n"),
    "ptb-new": Protocol("ptb", "test", ("ptb.test.txt",), _sentences, join=" "),
    "c4": _C4,
    "c4-new": replace(_C4, join=" ", most_rows=1100),
}
