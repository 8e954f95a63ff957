"""Local data of every task, in a form in which it is passed around, and tiny models."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from autocomp.models import LoadedModel, load

NOUNS = ("river", "stone", "garden", "window", "letter", "engine", "winter", "market")
EXAMPLES = 12


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def sentence(index: int) -> str:
    """Return a sentence of its own for every index."""
    first, second = NOUNS[index % 8], NOUNS[(index // 8 + 3 * index) % 8]
    return f"The {first} of the {second} was seen {index} times"


def question(index: int) -> dict[str, Any]:
    """Return a question in the release's form of ARC and OpenBookQA."""
    words = [NOUNS[(index + step) % 8] * (step + 1) for step in range(4)]
    choices = [{"text": word, "label": label} for word, label in zip(words, "ABCD", strict=True)]
    stem = f"{sentence(index)}. What was seen?"
    return {
        "id": f"q{index}",
        "question": {"stem": stem, "choices": choices},
        "answerKey": "ABCD"[index % 4],
    }


def hellaswag(index: int) -> dict[str, Any]:
    """Return a row of HellaSwag's release."""
    endings = [f"{word} {sentence(index)}." for word in ("sees", "holds", "takes", "leaves")]
    row = {"activity_label": "Sailing", "ctx_a": f"{sentence(index)}.", "ctx_b": "the man"}
    return row | {"endings": endings, "label": index % 4}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few examples of every task."""
    folder, indices = tmp_path_factory.mktemp("data"), range(EXAMPLES)
    for name, rows in {
        "lambada/lambada_test.jsonl": (
            {"text": f"{sentence(i)} by the {NOUNS[i % 8]}"} for i in indices
        ),
        "piqa/valid.jsonl": (
            {"goal": sentence(i), "sol1": f"Take {NOUNS[i % 8]}.", "sol2": "Wait."}
            for i in indices
        ),
        "ARC-Easy/ARC-Easy-Test.jsonl": map(question, indices),
        "ARC-Challenge/ARC-Challenge-Test.jsonl": map(question, range(20, 20 + EXAMPLES)),
        "OpenBookQA/Data/Main/test.jsonl": map(question, range(40, 40 + EXAMPLES)),
        "hellaswag/hellaswag_val.jsonl": map(hellaswag, indices),
        "winogrande_1.1/dev.jsonl": (
            {
                "sentence": f"{sentence(i)}, but the _ was lost.",
                "option1": NOUNS[i % 8],
                "option2": "man",
                "answer": str(1 + i % 2),
            }
            for i in indices
        ),
        "boolq/dev.jsonl": (
            {"passage": f"{sentence(i)}.", "question": "was it seen", "answer": i % 3 == 0}
            for i in indices
        ),
    }.items():
        write_lines(folder / name, rows)
    (folder / "piqa/valid-labels.lst").write_text("".join(f"{i % 2}\n" for i in indices))
    pages = "".join(f" = Page {i} = \n \n {sentence(i)} . \n \n" for i in indices)
    (folder / "wikitext-2-raw").mkdir()
    (folder / "wikitext-2-raw/wiki.test.raw").write_text(f" \n{pages}")
    return folder


@pytest.fixture
def trained(trained_llama_path: Path) -> LoadedModel:
    """The trained tiny Llama, fp32."""
    return load(str(trained_llama_path), dtype=torch.float32)


@pytest.fixture(scope="session")
def lines() -> Callable[[Path, Iterable[Any]], Path]:
    """Return the function that writes JSON lines."""
    return write_lines
