import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.arc import ARC_CHALLENGE, ARC_EASY

HUB = {
    "id": "a",
    "question": "Which?",
    "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
RELEASE = {
    "id": "a",
    "question": {
        "stem": "Which?",
        "choices": [{"text": text, "label": label} for text, label in ("xA", "yB", "zC")],
    },
    "answerKey": "B",
}
INDEXED = {"id": "a", "question": "Which?", "choices": ["x", "y", "z"], "gold": 1}


@pytest.mark.parametrize("row", [HUB, RELEASE, INDEXED], ids=["hub", "release", "indexed"])
def test_every_form_becomes_the_hubs(lines, tmp_path, row):
    assert list(ARC_EASY.rows(lines(tmp_path / "t.jsonl", [row]))) == [HUB]


def test_numbered_labels_stay(lines, tmp_path):
    row = HUB | {"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    assert list(ARC_EASY.rows(lines(tmp_path / "t.jsonl", [row]))) == [row]


def test_the_parts_are_told_apart(data_dir):
    assert ARC_EASY.find(data_dir).name == "ARC-Easy-Test.jsonl"
    assert ARC_CHALLENGE.find(data_dir).name == "ARC-Challenge-Test.jsonl"


@pytest.mark.parametrize(
    "change",
    [
        {"answerKey": "D"},
        {"answerKey": None},
        {"question": ""},
        {"choices": {"text": ["x", "y"], "label": ["A", "B", "C"]}},
        {"choices": {"text": ["x", "", "z"], "label": ["A", "B", "C"]}},
        {"choices": ["x", "y", "z"], "gold": 3, "answerKey": "no label"},
        {"question": {"stem": "Which?", "choices": ["x"]}},
    ],
)
def test_bad_rows_are_named(lines, tmp_path, change):
    path = lines(tmp_path / "t.jsonl", [HUB, HUB | change])
    with pytest.raises(ConfigError, match=r"t\.jsonl, line 2: expected a question with choices"):
        list(ARC_EASY.rows(path))
