"""``autocomp tasks``: a folder for lm-eval, and the command that reads it."""

import json
import shlex

import pytest


@pytest.fixture
def data_dir(tmp_path):
    rows = [{"goal": f"g{i}", "sol1": "a", "sol2": "b", "label": i % 2} for i in range(3)]
    path = tmp_path / "data" / "piqa" / "valid.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path / "data"


def test_the_folder_and_the_command(run, data_dir, tmp_path):
    out = tmp_path / "local tasks"
    answer = run("tasks", "--data-dir", data_dir, "--out", out, "--tasks", "piqa", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    source = str((data_dir / "piqa/valid.jsonl").resolve())
    assert found["tasks"] == [{"name": "piqa", "source": source, "examples": 3}]
    assert (out / "piqa.yaml").is_file()
    words = shlex.split(found["command"])
    assert words[:2] == ["HF_HUB_OFFLINE=1", "lm_eval"]
    assert words[words.index("--include_path") + 1] == str(out)
    assert words[words.index("--tasks") + 1] == "piqa"


def test_text_for_people(run, data_dir, tmp_path):
    answer = run("tasks", "--data-dir", data_dir, "--out", tmp_path / "out", "--tasks", "piqa")
    assert "piqa" in answer.out
    assert "next: HF_HUB_OFFLINE=1 lm_eval --model hf" in answer.out


def test_what_lies_in_the_folder_is_kept_unless_forced(run, data_dir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    arguments = ("tasks", "--data-dir", data_dir, "--out", out, "--tasks", "piqa", "-q")
    answer = run(*arguments)
    assert answer.code == 2
    assert "add --force" in answer.err
    assert (out / "mine").exists()
    assert run(*arguments, "--force").code == 0
    assert not (out / "mine").exists()


def test_missing_data_exits_with_2(run, data_dir, tmp_path):
    answer = run("tasks", "--data-dir", data_dir, "--out", tmp_path / "out")
    assert answer.code == 2
    assert "lambada" in answer.err
    assert not (tmp_path / "out").exists()
