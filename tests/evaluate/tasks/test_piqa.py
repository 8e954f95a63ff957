import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.piqa import PIQA

ROWS = [{"goal": f"g{i}", "sol1": "a", "sol2": "b"} for i in range(3)]
HUB = [row | {"label": label} for row, label in zip(ROWS, (1, 0, 1), strict=True)]


def release(lines, folder, labels):
    path = lines(folder / "valid.jsonl", ROWS)
    (folder / "valid-labels.lst").write_text(labels)
    return path


def test_hub_and_release_are_alike(lines, tmp_path):
    assert list(PIQA.rows(lines(tmp_path / "hub.jsonl", HUB))) == HUB
    assert list(PIQA.rows(release(lines, tmp_path, "1\n0\n1\n"))) == HUB


@pytest.mark.parametrize(
    ("labels", "message"),
    [("1\n0\n", "2 labels for the 3 rows"), ("1\n0\n2\n", r"label 3: expected 0 or 1, got '2'")],
)
def test_bad_labels_are_named(lines, tmp_path, labels, message):
    with pytest.raises(ConfigError, match=message):
        list(PIQA.rows(release(lines, tmp_path, labels)))


def test_missing_labels_are_named(lines, tmp_path):
    path = lines(tmp_path / "valid.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"there is no .*valid-labels\.lst"):
        list(PIQA.rows(path))


@pytest.mark.parametrize("change", [{"sol1": ""}, {"label": -1}, {"goal": 3}])
def test_bad_rows_are_named(lines, tmp_path, change):
    path = lines(tmp_path / "valid.jsonl", [HUB[0], HUB[1] | change])
    with pytest.raises(ConfigError, match=r"valid\.jsonl, line 2: expected"):
        list(PIQA.rows(path))
