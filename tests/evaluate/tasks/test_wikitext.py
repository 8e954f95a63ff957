import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.wikitext import WIKITEXT

RAW = (
    " \n = Robert = \n \n He acted . \n = = Career = = \n = = = Later = = = \n \n"
    " \n = Du Fu = \n \n x = y = z \n \n"
)
PAGES = [
    {"page": " = Robert = \n \n He acted . \n = = Career = = \n = = = Later = = = \n \n "},
    {"page": " = Du Fu = \n \n x = y = z \n \n"},
]


def test_pages_begin_at_top_headings_and_lose_nothing(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text(RAW)
    pages = list(WIKITEXT.rows(path))
    assert pages == PAGES
    assert " \n" + "\n".join(page["page"] for page in pages) == RAW


def test_line_rows_give_the_same_pages(lines, tmp_path):
    rows = [{"text": f"{line}\n" if line.strip() else ""} for line in RAW.split("\n")[:-1]]
    assert list(WIKITEXT.rows(lines(tmp_path / "test.jsonl", rows))) == PAGES


def test_pages_are_kept(lines, tmp_path):
    assert list(WIKITEXT.rows(lines(tmp_path / "test.jsonl", PAGES))) == PAGES


@pytest.mark.parametrize("row", [{"text": None}, {"page": "x"}])
def test_bad_rows_are_named(lines, tmp_path, row):
    path = lines(tmp_path / "test.jsonl", [{"text": " = A = \n"}, row])
    with pytest.raises(ConfigError, match=r"test\.jsonl, line 2: expected 'text' with text"):
        list(WIKITEXT.rows(path))
