import json
import re
import sys
from itertools import combinations
from pathlib import Path

import pytest

from autocomp.core.errors import ConfigError
from autocomp.data import SPLITS, Corpus, load_corpus


def paragraphs(corpus: Corpus, split: str) -> set[str]:
    """Paragraphs long enough to carry information, without regard to spacing."""
    texts = (part for text in corpus.documents(split) for part in re.split(r"\n\s*\n", text))
    return {words for text in texts if len(words := " ".join(text.split())) >= 40}


def test_pydoc_parts_share_no_paragraph() -> None:
    corpus = load_corpus("pydoc")
    parts = [paragraphs(corpus, split) for split in SPLITS]
    assert all(len(part) > 100 for part in parts)
    assert not any(first & second for first, second in combinations(parts, 2))


def test_pydoc_parts_have_their_shares() -> None:
    corpus = load_corpus("pydoc")
    sizes = [sum(map(len, corpus.documents(split))) for split in SPLITS]
    shares = [size / sum(sizes) for size in sizes]
    assert shares == pytest.approx([0.3, 0.3, 0.4], abs=0.05)
    assert sum(sizes) > 300_000


def test_pydoc_is_the_same_every_time() -> None:
    assert load_corpus("pydoc") == load_corpus("pydoc")
    assert load_corpus("pydoc").name == "pydoc"


def test_text_file_is_cut_into_contiguous_thirds(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("\n\n".join(f"paragraph {index:03d}" for index in range(30)))
    corpus = load_corpus(str(path))
    assert corpus.name == "notes.txt"
    assert [len(corpus.documents(split)) for split in SPLITS] == [10, 10, 10]
    assert corpus.calibration[0] == "paragraph 000"
    assert corpus.heldout[-1] == "paragraph 029"


@pytest.mark.parametrize("sizes", [(1, 1, 1), (900, 1, 1), (1, 1, 900), (1, 900, 1, 1)])
def test_every_part_of_a_file_gets_a_document(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("\n\n".join("x" * size for size in sizes))
    corpus = load_corpus(str(path))
    parts = [corpus.documents(split) for split in SPLITS]
    assert all(parts)
    assert [len(text) for part in parts for text in part] == list(sizes)


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps({"text": f"line {index}"}) + "\n" for index in range(6)))
    assert load_corpus(str(path)).search == ("line 2", "line 3")


def test_digest_follows_content(tmp_path: Path) -> None:
    digests = set()
    for text in ("a\n\nb\n\nc", "a\n\nb\n\nd", "a\n\nb\n\nc"):
        path = tmp_path / "notes.txt"
        path.write_text(text)
        digests.add(load_corpus(str(path)).digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("short.txt", "one\n\ntwo", "holds 2 documents"),
        ("bad.jsonl", '{"text": "a"}\n{"body": "b"}\n', "line 2"),
        ("broken.jsonl", "{", "line 1"),
        ("absent.txt", None, "cannot be read"),
    ],
)
def test_bad_files_are_refused(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    path = tmp_path / file
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_corpus(str(path))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'wikitext2'"):
        load_corpus("wikitext")
    with pytest.raises(ConfigError, match="unknown split 'test'"):
        load_corpus("pydoc").documents("test")  # type: ignore[arg-type]


def test_missing_datasets_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"autocomp\[eval\]"):
        load_corpus("wikitext2")


class FakeDatasets:
    """Stands in for the ``datasets`` package; counts rows by split."""

    def load_dataset(
        self,
        repository: str,
        subset: str | None,
        *,
        data_files: dict[str, str] | None,
        split: str,
        revision: str | None,
        streaming: bool,
    ) -> list[dict[str, str]]:
        column = "sentence" if "ptb" in repository else "text"
        return [{column: text} for text in ("", f"{split} 0", " \n", f"{split} 1")]


@pytest.mark.parametrize("name", ["wikitext2", "ptb"])
def test_hub_corpora_keep_the_official_parts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets())  # type: ignore[arg-type]
    corpus = load_corpus(name)
    assert corpus.calibration == ("train 0", "train 1")
    assert corpus.search == ("validation 0", "validation 1")
    assert corpus.heldout == ("test 0", "test 1")


def test_c4_deals_training_documents_alternately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets())  # type: ignore[arg-type]
    corpus = load_corpus("c4")
    assert (corpus.calibration, corpus.search) == (("train 0",), ("train 1",))
    assert corpus.heldout == ("validation 0", "validation 1")
