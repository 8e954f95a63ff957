import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.openbookqa import OPENBOOKQA

CHOICES = {"text": ["x", "y"], "label": ["A", "B"]}
HUB = {"id": "7", "question_stem": "It is", "choices": CHOICES, "answerKey": "A"}
RELEASE = {
    "id": "7",
    "question": {
        "stem": "It is",
        "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}],
    },
    "answerKey": "A",
}
INDEXED = {"id": "7", "question": "It is", "choices": ["x", "y"], "gold": 0}


@pytest.mark.parametrize("row", [HUB, RELEASE, INDEXED], ids=["hub", "release", "indexed"])
def test_every_form_becomes_the_hubs(lines, tmp_path, row):
    assert list(OPENBOOKQA.rows(lines(tmp_path / "test.jsonl", [row]))) == [HUB]


def test_the_additional_part_is_no_rival(lines, tmp_path):
    main = lines(tmp_path / "OpenBookQA/Data/Main/test.jsonl", [RELEASE])
    lines(tmp_path / "OpenBookQA/Data/Additional/test_complete.jsonl", [RELEASE])
    assert OPENBOOKQA.find(tmp_path) == main


def test_bad_rows_are_named(lines, tmp_path):
    path = lines(tmp_path / "test.jsonl", [{"question": "It is", "choices": ["x", "y"]}])
    with pytest.raises(ConfigError, match=r"test\.jsonl, line 1: expected a question with"):
        list(OPENBOOKQA.rows(path))
