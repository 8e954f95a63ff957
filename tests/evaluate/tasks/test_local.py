import json

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks import TASKS, write_tasks
from autocomp.evaluate.tasks.harness import definition

EXAMPLES = 12
WHERE_DATA_COMES_FROM = {
    *("dataset_path", "dataset_name", "dataset_kwargs"),
    *("training_split", "validation_split", "test_split"),
    "tag",  # names the group in which the built-in task is
}


def test_every_task_is_lm_evals_own_but_for_its_data(data_dir, tmp_path):
    out = tmp_path / "out"
    assert [task.name for task in write_tasks(data_dir, out, list(TASKS))] == list(TASKS)
    manager = TaskManager(include_defaults=False, include_path=out)
    assert manager.all_tasks == sorted(TASKS)
    for name, task in manager.load(list(TASKS))["tasks"].items():
        assert len(task.eval_docs) == EXAMPLES
        files = (out / f"{name}.yaml", definition(name))
        ours, built_in = (load_yaml(path, resolve_func=False) for path in files)
        changed = {key for key in ours | built_in if ours.get(key) != built_in.get(key)}
        assert changed <= WHERE_DATA_COMES_FROM


def test_examples_are_json_lines_in_the_hubs_columns(data_dir, tmp_path):
    (task,) = write_tasks(data_dir, tmp_path / "out", "piqa")
    assert (task.name, task.examples) == ("piqa", 12)
    assert task.source == data_dir / "piqa/valid.jsonl"
    rows = (tmp_path / "out/piqa/validation.jsonl").read_text().splitlines()
    assert json.loads(rows[1]) == {
        "goal": "The stone of the window was seen 1 times",
        "sol1": "Take stone.",
        "sol2": "Wait.",
        "label": 1,
    }


def test_whole_or_not_at_all(data_dir, tmp_path, lines):
    out, bad = tmp_path / "out", tmp_path / "bad"
    write_tasks(data_dir, out, "piqa")
    before = sorted(out.rglob("*"))
    lines(bad / "piqa/valid.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}])
    lines(bad / "boolq/dev.jsonl", [{"passage": "p", "question": "q"}])
    with pytest.raises(ConfigError, match=r"dev\.jsonl, line 1"):
        write_tasks(bad, out, "piqa,boolq")
    with pytest.raises(ConfigError, match=r"no file called .* matches \*hellaswag\*"):
        write_tasks(bad, out, "piqa,hellaswag")
    assert sorted(out.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "out"]


def test_a_file_without_rows_is_refused(tmp_path, lines):
    lines(tmp_path / "boolq/dev.jsonl", [])
    with pytest.raises(ConfigError, match=r"dev\.jsonl holds no examples"):
        write_tasks(tmp_path, tmp_path / "out", "boolq")
