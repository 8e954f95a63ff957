import math

import pytest
import torch

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks import SUITES, TaskSuite, evaluate_tasks
from autocomp.models.tiny import byte_tokenizer

TASKS = SUITES["zero-shot"]
HEADLINES = {"arc_challenge": "acc_norm", "hellaswag": "acc_norm", "openbookqa": "acc_norm"}


def names(suite, stop=None):
    return [example.task.task_name for example in suite._examples[:stop]]


@pytest.fixture(scope="module")
def suite(tiny_tokenizer, data_dir):
    return TaskSuite(tiny_tokenizer, "zero-shot", data_dir=data_dir, seed=0)


@pytest.fixture(scope="module")
def tiny_tokenizer():
    return byte_tokenizer()


def test_every_prefix_samples_all_tasks_alike(suite):
    assert suite.units == 12 * len(TASKS)
    for rounds in (1, 5, 12):
        assert sorted(names(suite, rounds * len(TASKS))) == sorted(TASKS * rounds)


def test_tasks_of_unequal_size_are_spread_over_the_whole(tiny_tokenizer, lines, tmp_path):
    piqa = [{"goal": f"g{i}", "sol1": "a", "sol2": "b", "label": 0} for i in range(9)]
    boolq = [{"passage": f"p{i}", "question": "q", "label": 0} for i in range(3)]
    lines(tmp_path / "piqa/valid.jsonl", piqa)
    lines(tmp_path / "boolq/dev.jsonl", boolq)
    found = names(TaskSuite(tiny_tokenizer, "piqa,boolq", data_dir=tmp_path))
    assert [found[start : start + 4].count("boolq") for start in (0, 4, 8)] == [1, 1, 1]


def test_the_seed_fixes_examples_and_order(tiny_tokenizer, data_dir, suite):
    def digest(seed, limit=None):
        return TaskSuite(
            tiny_tokenizer, "zero-shot", data_dir=data_dir, limit=limit, seed=seed
        ).digest

    assert digest(0) == suite.digest
    assert len({digest(0), digest(1), digest(0, 5), digest(1, 5)}) == 4


def test_a_limit_takes_the_first_of_the_same_order(tiny_tokenizer, data_dir, suite):
    small = TaskSuite(tiny_tokenizer, "zero-shot", data_dir=data_dir, limit=3)
    assert small.units == 3 * len(TASKS)
    for task in TASKS:
        rows, all_rows = (
            [example.row for example in found._examples if example.task.task_name == task]
            for found in (small, suite)
        )
        assert rows == all_rows[:3]


def test_parts_are_the_same_at_every_call(suite, trained):
    whole, tokens = suite.errors(trained.model, 0, 16)
    parts = [suite.errors(trained.model, *ends) for ends in ((0, 8), (8, 16))]
    assert parts[0][0] + parts[1][0] == whole
    assert parts[0][1] + parts[1][1] == tokens
    assert suite.errors(trained.model, 0, 16) == (whole, tokens)
    assert suite.errors(trained.model, 5, 5) == ((), 0)
    assert set(whole) == {0.0, 1.0}


def test_the_mean_is_one_minus_the_headline_accuracy(suite, trained, data_dir):
    errors, _ = suite.errors(trained.model, 0, suite.units)
    for found in evaluate_tasks(trained.model, trained.tokenizer, "zero-shot", data_dir=data_dir):
        name = found.data.name
        mine = [error for error, task in zip(errors, names(suite), strict=True) if task == name]
        accuracy = found.metrics[HEADLINES.get(name, "acc")].value
        assert 1 - sum(mine) / len(mine) == pytest.approx(accuracy, abs=1e-12)


def test_search_and_heldout_share_no_example(suite, trained):
    search, heldout = suite.split(0.25)
    assert (search.units, heldout.units) == (24, 72)
    assert (search.name, heldout.name) == ("zero-shot:search", "zero-shot:heldout")
    assert search._examples + heldout._examples == suite._examples
    assert len({search.digest, heldout.digest, suite.digest}) == 3
    assert sorted(names(search)) == sorted(TASKS * 3)
    assert heldout.errors(trained.model, 0, 4) == suite.errors(trained.model, 24, 28)


def test_a_model_that_gives_no_figure_has_no_error(suite, trained):
    """Neither right nor wrong: whoever compares has to see it."""
    trained.model.model.norm.weight.fill_(torch.nan)
    errors, _ = suite.errors(trained.model, 0, 8)
    assert all(math.isnan(error) for error in errors)


def test_bad_settings_are_refused(tiny_tokenizer, data_dir, suite, trained):
    with pytest.raises(ConfigError, match="wikitext has no accuracy"):
        TaskSuite(tiny_tokenizer, "piqa,wikitext", data_dir=data_dir)
    with pytest.raises(ConfigError, match="a limit of 0"):
        TaskSuite(tiny_tokenizer, "piqa", data_dir=data_dir, limit=0)
    with pytest.raises(ConfigError, match="leaves one part empty"):
        suite.split(0.001)
    with pytest.raises(ConfigError, match="of a suite of 96"):
        suite.errors(trained.model, 90, 97)
