import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.boolq import BOOLQ

ROW = {"passage": "Ice is cold.", "question": "is ice cold"}


@pytest.mark.parametrize(
    "row",
    [
        ROW | {"idx": 3, "label": 1},
        ROW | {"title": "Ice", "answer": True},
        ROW | {"idx": 3, "label": True},
        ROW | {"question": "is ice cold?", "answer": True},
    ],
    ids=["hub", "release", "superglue", "with a question mark"],
)
def test_every_form_becomes_the_hubs(lines, tmp_path, row):
    (found,) = BOOLQ.rows(lines(tmp_path / "dev.jsonl", [row]))
    assert found == ROW | {"label": 1}
    assert type(found["label"]) is int


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ROW | {"label": 2}, "'label' or 'answer' to be one of"),
        (ROW | {"answer": "yes"}, "'label' or 'answer' to be one of"),
        (ROW | {"answer": None}, "'label' or 'answer' to be one of"),
        ({"question": "is it", "answer": True}, "'passage' with text"),
    ],
)
def test_bad_rows_are_named(lines, tmp_path, row, expected):
    path = lines(tmp_path / "dev.jsonl", [ROW | {"label": 0}, row])
    with pytest.raises(ConfigError, match=rf"dev\.jsonl, line 2: expected {expected}"):
        list(BOOLQ.rows(path))
