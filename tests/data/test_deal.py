"""Texts dealt anew."""

import json
from pathlib import Path

import pytest

from autocomp.data import SPLITS, load_corpus
from autocomp.data.deal import dealt


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Document number {i}." for i in range(60)), encoding="utf-8")
    return path


def documents(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]


def test_a_seed_deals_every_document_to_a_part_of_its_own(text: Path, tmp_path: Path) -> None:
    paths = [dealt(str(text), seed, tmp_path / str(seed)) for seed in (0, 1)]
    again = dealt(str(text), 0, tmp_path / "new" / "folder", "named")
    assert [path.name for path in (*paths, again)] == ["text.jsonl", "text.jsonl", "named.jsonl"]
    first, second = map(documents, paths)
    assert first == documents(again)
    assert first != second
    assert sorted(first) == sorted(second)
    whole, corpus = load_corpus(str(text)), load_corpus(str(paths[0]))
    assert sorted(d for split in SPLITS for d in corpus.documents(split)) == sorted(first)
    assert corpus.documents("heldout") != whole.documents("heldout")
