"""Corpora in three parts that share no text: calibration, search and held-out."""

import gzip
import hashlib
import json
import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
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


def _official_splits(name: str) -> Parts:
    """Load a data set's train, validation and test parts, one document a row."""
    train, validation, test = (
        tuple(_filled(hub_rows(name, split))) for split in ("train", "validation", "test")
    )
    return train, validation, test


def _c4() -> Parts:
    """Load the first documents of C4 (English)."""
    train = tuple(islice(_filled(hub_rows("c4", "train")), 2 * _C4_DOCUMENTS))
    heldout = tuple(islice(_filled(hub_rows("c4", "validation")), _C4_DOCUMENTS))
    return train[::2], train[1::2], heldout


def hub_rows(name: str, split: str, file: str | None = None) -> Iterator[str]:
    """Yield every row of a data set of the hub, empty ones included, streamed.

    Args:
        name: ``wikitext2``, ``ptb`` or ``c4``.
        split: ``train``, ``validation`` or ``test``.
        file: The only file of the data set to read; ``None`` reads the whole split.

    Raises:
        ConfigError: If the ``datasets`` package is missing or the hub cannot be reached.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"corpus {name!r} needs the datasets package: pip install 'autocomp[eval]'."
        ) from error
    hub = _HUB[name]
    try:
        rows = datasets.load_dataset(
            hub.repository,
            hub.subset if file is None else None,
            data_files=None if file is None else {split: file},
            split=split,
            revision=hub.revision,
            streaming=True,
        )
        yield from (row[hub.column] for row in rows)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"corpus {name!r} ({hub.repository}) cannot be loaded: {error} Check the network and "
            "HF_HUB_OFFLINE, or use pydoc or a local .txt or .jsonl file."
        ) from error


def _filled(rows: Iterable[str]) -> Iterator[str]:
    """Yield the rows that hold more than space."""
    return (row for row in rows if row.strip())


def _read(path: Path) -> list[str]:
    """Return the documents of a local file."""
    return list(_filled(_READERS[path.suffix](path, read_text(path))))


def read_text(path: Path) -> str:
    """Return the text of a file, unpacked where its name ends in ``.gz``; line ends become LF.

    Raises:
        ConfigError: If it cannot be read as UTF-8 text.
    """
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            return str(file.read())
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(f"corpus file {path} cannot be read as UTF-8 text: {error}.") from error


def paragraphs(path: Path, text: str) -> list[str]:
    """Return the paragraphs of a text; the path is not read."""
    return _PARAGRAPH.split(text)


def _lines(path: Path, text: str) -> list[str]:
    """Return the lines of a text."""
    return text.splitlines()


def json_lines(path: Path, text: str) -> list[str]:
    """Return the ``text`` fields of JSON lines, empty ones included.

    Args:
        path: Where they come from, for messages.
        text: One JSON object a line.

    Raises:
        ConfigError: If a line is no object with a ``text``.
    """
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
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


@dataclass(frozen=True, slots=True)
class _HubText:
    """Where a data set lies on the hub, and which column holds its text."""

    repository: str
    column: str
    subset: str | None = None
    revision: str | None = None


_HUB = {
    "wikitext2": _HubText("Salesforce/wikitext", "text", "wikitext-2-raw-v1"),
    "ptb": _HubText("ptb-text-only/ptb_text_only", "sentence", revision="refs/convert/parquet"),
    "c4": _HubText("allenai/c4", "text", "en"),
}
_LOADERS: dict[str, Callable[[], Parts]] = {
    "pydoc": _pydoc,
    "wikitext2": partial(_official_splits, "wikitext2"),
    "c4": _c4,
    "ptb": partial(_official_splits, "ptb"),
}
_READERS: dict[str, Callable[[Path, str], list[str]]] = {
    ".txt": paragraphs,
    ".raw": _lines,
    ".jsonl": json_lines,
}
