import bz2

import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.sources import Adapter, json_lines, text_of

ADAPTER = Adapter("*some?set*", ("dev*.jsonl", "*val*.jsonl"), lambda path: iter(()))


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["a/Some-Set/DEV.jsonl", "a/Some-Set/val.jsonl"], "a/Some-Set/DEV.jsonl"),
        (["some_set.val.jsonl", "other/dev.jsonl"], "some_set.val.jsonl"),
        (["deep/er/some set/x/validation.jsonl"], "deep/er/some set/x/validation.jsonl"),
    ],
)
def test_the_best_pattern_wins_in_any_folder_and_case(tmp_path, files, found):
    make(tmp_path, *files)
    assert ADAPTER.find(tmp_path) == tmp_path / found


def test_the_data_folders_own_name_counts(tmp_path):
    make(tmp_path, "some-set/dev.jsonl")
    assert ADAPTER.find(tmp_path / "some-set").name == "dev.jsonl"


def test_what_is_missing_is_named(tmp_path):
    make(tmp_path, "some-set/train.jsonl", "set/dev.jsonl")
    with pytest.raises(ConfigError, match=r"no file called dev\*\.jsonl or \*val\*\.jsonl"):
        ADAPTER.find(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        ADAPTER.find(tmp_path / "absent")


def test_two_equal_files_are_not_guessed_between(tmp_path):
    make(tmp_path, "some-set/a/dev.jsonl", "some-set/b/dev.jsonl")
    with pytest.raises(ConfigError, match=r"some-set/a/dev\.jsonl, some-set/b/dev\.jsonl"):
        ADAPTER.find(tmp_path)


@pytest.mark.parametrize("line", ["{", "[1]", '"text"'])
def test_lines_that_are_no_objects_are_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n\n{line}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 3: expected a JSON object"):
        list(json_lines(path))


def test_only_line_feeds_end_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x\u2028y"}\n', encoding="utf-8")
    assert [record.values for record in json_lines(path)] == [{"a": "x\u2028y"}]


def test_packed_text_is_unpacked_and_no_text_is_refused(tmp_path):
    path = tmp_path / "a.txt.bz2"
    path.write_bytes(bz2.compress("é\n".encode()))
    assert text_of(path) == "é\n"
    path.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match=r"a\.txt\.bz2 cannot be read"):
        text_of(path)
    latin = tmp_path / "a.jsonl"
    latin.write_bytes("é".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        text_of(latin)
