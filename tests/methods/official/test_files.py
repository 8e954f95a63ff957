"""Where the numbers come from is written in every file, and in the list of them."""

import re
from pathlib import Path

import pytest
from safetensors import safe_open

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.safetensors"))


@pytest.mark.parametrize("path", [p for p in FILES if p.stem != "site"], ids=lambda p: p.stem)
def test_a_file_says_where_it_comes_from(path):
    with safe_open(path, "pt") as file:
        origin = file.metadata()
    assert re.fullmatch("[0-9a-f]{40}", origin["commit"])
    assert re.search(r"torch \d+\.\d+", origin["with"])
    row = re.search(rf"\| `{path.stem}` \| (\S+)(?: \\\*)? \| `(\w+)` \|", readme())
    assert row.groups() == (origin["repository"], origin["commit"][:12])


def test_the_list_has_no_other_rows():
    listed = set(re.findall(r"^\| `(\w+)` \|", readme(), re.MULTILINE))
    assert listed == {path.stem for path in FILES} - {"site"}


def test_no_file_is_large():
    assert sum(path.stat().st_size for path in FILES) < 250_000


def readme():
    return (HERE / "README.md").read_text()
