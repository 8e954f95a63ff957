import bz2

import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.hellaswag import HELLASWAG

ENDINGS = ["sits.", "stands.", "runs.", "sleeps."]
CAPTION = {
    "activity_label": "Surfing",
    "ctx_a": "Shoes are shown. A person puts socks on.",
    "ctx_b": "the man",
    "endings": ENDINGS,
    "label": "2",
}
ARTICLE = CAPTION | {"activity_label": "Health", "ctx_a": "How to rest. Sit down.", "ctx_b": ""}
TEXT = "\n".join(
    [
        "Surfing: Shoes are shown. A person puts socks on. the man", "2", *ENDINGS,
        "Health: How to rest. Sit down.", "2", *ENDINGS, "",
    ]
)  # fmt: skip


def test_hub_and_release_are_alike(lines, tmp_path):
    release = CAPTION | {"label": 2, "ind": 24, "ctx": "Shoes …", "split": "val"}
    path = lines(tmp_path / "val.jsonl", [CAPTION, release, ARTICLE])
    assert list(HELLASWAG.rows(path)) == [CAPTION, CAPTION, ARTICLE]


@pytest.mark.parametrize("packed", [False, True])
def test_six_lines_an_item(tmp_path, packed):
    """A context that ends within a sentence is a caption's: what was begun is ``ctx_b``."""
    path = tmp_path / ("val.txt.bz2" if packed else "val.txt")
    path.write_bytes(bz2.compress(TEXT.encode()) if packed else TEXT.encode())
    assert list(HELLASWAG.rows(path)) == [CAPTION, ARTICLE]


@pytest.mark.parametrize(
    ("old", "new"),
    [("Health: ", "Health "), ("\n2\nsits.\nstands.\nruns.\nsleeps.\n", "\n4\na\nb\nc\nd\n"),
     ("sleeps.\n", "")],
    ids=["no activity", "no label", "an ending short"],
)  # fmt: skip
def test_bad_items_are_named(tmp_path, old, new):
    path = tmp_path / "val.txt"
    head, _, tail = TEXT.rpartition(old)
    path.write_text(head + new + tail)
    with pytest.raises(ConfigError, match=r"val\.txt, line 7: expected six lines"):
        list(HELLASWAG.rows(path))


@pytest.mark.parametrize("change", [{"label": ""}, {"endings": ENDINGS[:3]}, {"ctx_b": None}])
def test_bad_rows_are_named(lines, tmp_path, change):
    path = lines(tmp_path / "val.jsonl", [CAPTION, CAPTION | change])
    with pytest.raises(ConfigError, match=r"val\.jsonl, line 2: expected"):
        list(HELLASWAG.rows(path))
