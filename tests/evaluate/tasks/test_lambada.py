import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.lambada import LAMBADA


def test_texts_are_kept_as_they_are(lines, tmp_path):
    rows = [{"text": "a b\n\n“c” d"}, {"text": " one two"}]
    assert list(LAMBADA.rows(lines(tmp_path / "t.jsonl", rows))) == rows


def test_translations_are_no_rivals(lines, tmp_path):
    path = lines(tmp_path / "lambada_test.jsonl", [])
    lines(tmp_path / "lambada_test_de.jsonl", [])
    assert LAMBADA.find(tmp_path) == path


@pytest.mark.parametrize("text", ["word", "ends in a blank ", ""])
def test_texts_without_a_last_word_are_named(lines, tmp_path, text):
    path = lines(tmp_path / "t.jsonl", [{"text": "a b"}, {"text": text}])
    with pytest.raises(ConfigError, match=r"t\.jsonl, line 2: expected 'text'"):
        list(LAMBADA.rows(path))
