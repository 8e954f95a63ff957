import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.winogrande import WINOGRANDE

ROW = {"sentence": "The _ fell.", "option1": "cup", "option2": "hat", "answer": "2"}


def test_release_and_hub_are_alike(lines, tmp_path):
    path = lines(tmp_path / "dev.jsonl", [ROW | {"qID": "3"}, ROW])
    assert list(WINOGRANDE.rows(path)) == [ROW, ROW]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"answer": ""}, "'answer' to be one of '1', '2'"),  # the test part has no answers
        ({"answer": 2}, "'answer' to be one of '1', '2'"),
        ({"sentence": "It fell."}, "'sentence' with a blank"),
        ({"option2": None}, "'option2' with text"),
    ],
)
def test_bad_rows_are_named(lines, tmp_path, change, expected):
    path = lines(tmp_path / "dev.jsonl", [ROW, ROW | change])
    with pytest.raises(ConfigError, match=rf"dev\.jsonl, line 2: expected {expected}"):
        list(WINOGRANDE.rows(path))
