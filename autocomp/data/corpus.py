"""Corpora in three parts that share no text: calibration, search and held-out."""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from pydoc_data import topics
from typing import Any, Literal

from autocomp.core.errors import ConfigError
from autocomp.core.registry import nearest

Split = Literal["calibration", "search", "heldout"]
SPLITS: tuple[Split, ...] = ("calibration", "search", "heldout")

_SHARES = {"calibration": 0.3, "search": 0.3, "heldout": 0.4}
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_REPEATED_LENGTH = 40
_SHORTEST_TOPIC = 200
_C4_DOCUMENTS = 2000


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text in three disjoint parts.

    Args:
        name: What figures are labelled with.
        digest: Sha256 over the three parts, hexadecimal.
        calibration: Documents that statistics and fitted constants may see.
        search: Documents that candidates are compared on.
        heldout: Documents that only finished models are measured on.
    """

    name: str
    digest: str
    calibration: tuple[str, ...]
    search: tuple[str, ...]
    heldout: tuple[str, ...]

    def documents(self, split: Split) -> tuple[str, ...]:
        """Return one part's documents.

        Raises:
            ConfigError: If there is no such part.
        """
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}.")
        parts: tuple[str, ...] = getattr(self, split)
        return parts


def load_corpus(name: str) -> Corpus:
    """Load a corpus by name, or from a local file.

    * ``pydoc``: the English prose of CPython's ``pydoc_data.topics``, in every Python; paragraphs
      that several topics repeat are kept in one of them, then whole topics are dealt out, 30, 30
      and 40 % of the characters.
    * ``wikitext2``, ``ptb`` (train → calibration, validation → search, test → held-out) and ``c4``
      (even and odd documents of the first training shard → calibration and search, validation →
      held-out), through ``datasets``.
    * A ``.txt`` file (documents are its paragraphs), a ``.raw`` file (its lines, as WikiText is
      shipped) or a ``.jsonl`` file (its ``text`` fields),
      cut into three contiguous parts of about equal size in characters.

    Args:
        name: One of the names above, or a path.

    Raises:
        ConfigError: If the name is unknown, the file cannot be read or holds too few documents, or
            the ``datasets`` package is missing.
    """
    path = Path(name).expanduser()
    if name in _LOADERS:
        label, parts = name, _LOADERS[name]()
    elif path.suffix in _READERS:
        label, parts = path.name, _thirds(path, _read(path))
    else:
        raise ConfigError(
            f"unknown corpus {name!r}.{nearest(name, list(_LOADERS))} Known: "
            f"{', '.join(_LOADERS)}, or the path of a .txt, .raw or .jsonl file."
        )
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return Corpus(label, digest, *parts)


Parts = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def _pydoc() -> Parts:
    """Deal the topics out, largest first, each to the part that is furthest below its share."""
    parts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for _, text in sorted(_unique_topics().items(), key=lambda item: (-len(item[1]), item[0])):
        fill = {split: sum(map(len, parts[split])) / _SHARES[split] for split in SPLITS}
        parts[min(SPLITS, key=lambda split: fill[split])].append(text)
    calibration, search, heldout = (tuple(sorted(parts[split], key=_hash)) for split in SPLITS)
    return calibration, search, heldout


def _unique_topics() -> dict[str, str]:
    """Return the topics without the paragraphs that a larger topic already has."""
    seen: set[str] = set()
    unique: dict[str, str] = {}
    for topic, text in sorted(topics.topics.items(), key=lambda item: (-len(item[1]), item[0])):
        kept = []
        for paragraph in _PARAGRAPH.split(text):
            words = " ".join(paragraph.split())
            if len(words) < _REPEATED_LENGTH or words not in seen:
                kept.append(paragraph)
            seen.add(words)
        if sum(map(len, kept)) >= _SHORTEST_TOPIC:
            unique[topic] = "\n\n".join(kept)
    return unique


def _hash(text: str) -> str:
    """Return a key that orders documents without regard to size or topic."""
    return hashlib.sha256(text.encode()).hexdigest()


def _wikitext2() -> Parts:
    """Load WikiText-2 (raw), one document a non-empty line."""
    return _official_splits(
        _texts("wikitext2", "Salesforce/wikitext", "text", "wikitext-2-raw-v1")
    )


def _ptb() -> Parts:
    """Load the Penn Treebank, one document a sentence."""
    repository, revision = "ptb-text-only/ptb_text_only", "refs/convert/parquet"
    return _official_splits(_texts("ptb", repository, "sentence", revision=revision))


def _official_splits(texts: Callable[[str], Iterable[str]]) -> Parts:
    """Return a data set's train, validation and test parts."""
    return tuple(texts("train")), tuple(texts("validation")), tuple(texts("test"))


def _c4() -> Parts:
    """Load the first documents of C4 (English)."""
    texts = _texts("c4", "allenai/c4", "text", "en")
    train = tuple(islice(texts("train"), 2 * _C4_DOCUMENTS))
    heldout = tuple(islice(texts("validation"), _C4_DOCUMENTS))
    return train[::2], train[1::2], heldout


def _texts(
    name: str,
    repository: str,
    column: str,
    subset: str | None = None,
    revision: str | None = None,
) -> Callable[[str], Iterable[str]]:
    """Return a function from a split of a hub data set to its non-empty texts, streamed."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"corpus {name!r} needs the datasets package: pip install 'autocomp[eval]'."
        ) from error

    def texts(split: str) -> Iterable[str]:
        try:
            rows = datasets.load_dataset(
                repository, subset, split=split, revision=revision, streaming=True
            )
            yield from (row[column] for row in rows if row[column].strip())
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"corpus {name!r} ({repository}) cannot be loaded: {error} Check the network and "
                "HF_HUB_OFFLINE, or use pydoc or a local .txt or .jsonl file."
            ) from error

    return texts


def _read(path: Path) -> list[str]:
    """Return the documents of a local file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"corpus file {path} cannot be read as UTF-8 text: {error}.") from error
    return [document for document in _READERS[path.suffix](path, text) if document.strip()]


def _paragraphs(path: Path, text: str) -> list[str]:
    """Return the paragraphs of a text."""
    return _PARAGRAPH.split(text)


def _lines(path: Path, text: str) -> list[str]:
    """Return the lines of a text."""
    return text.splitlines()


def _json_lines(path: Path, text: str) -> list[str]:
    """Return the ``text`` fields of JSON lines."""
    documents = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            documents.append(row["text"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(
                f'{path}, line {number}: expected a JSON object with a "text" field: {error!r}.'
            ) from error
    return documents


def _thirds(path: Path, documents: list[str]) -> Parts:
    """Cut documents into three contiguous parts of about equal size, each with at least one."""
    if len(documents) < len(SPLITS):
        raise ConfigError(
            f"{path} holds {len(documents)} documents; at least 3 are needed for calibration, "
            "search and held-out text. Separate documents by blank lines (.txt) or write one a "
            "line (.jsonl)."
        )
    ends = list(accumulate(map(len, documents)))
    last = len(documents) - 1
    first = min(max(1, bisect_left(ends, ends[-1] / 3) + 1), last - 1)
    second = min(max(first + 1, bisect_left(ends, ends[-1] * 2 / 3) + 1), last)
    return tuple(documents[:first]), tuple(documents[first:second]), tuple(documents[second:])


_LOADERS: dict[str, Callable[[], Parts]] = {
    "pydoc": _pydoc,
    "wikitext2": _wikitext2,
    "c4": _c4,
    "ptb": _ptb,
}
_READERS: dict[str, Callable[[Path, str], list[str]]] = {
    ".txt": _paragraphs,
    ".raw": _lines,
    ".jsonl": _json_lines,
}
