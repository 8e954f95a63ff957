import pytest

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks import SUITES, TASKS, task_names


def test_zero_shot_is_what_has_an_accuracy():
    assert set(TASKS) - set(SUITES["zero-shot"]) == {"wikitext"}
    assert [name for name, task in TASKS.items() if task.headline == "acc_norm"] == [
        "arc_challenge", "hellaswag", "openbookqa",
    ]  # fmt: skip


def test_suites_are_spelled_out_once_and_in_order():
    assert task_names("boolq, piqa") == ("boolq", "piqa")
    assert task_names(["wikitext", "piqa", "wikitext"]) == ("wikitext", "piqa")
    found = task_names("boolq,zero-shot,wikitext")
    assert found[0] == "boolq"
    assert found[-1] == "wikitext"
    assert sorted(found) == sorted(TASKS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("piqqa", "unknown task 'piqqa'. Did you mean 'piqa'"),
        ("zeroshot", "Did you mean 'zero-shot'"),
        ("piqa,,boolq", "unknown task ''"),
        ([], "no task was named"),
    ],
)
def test_unknown_names_give_the_nearest(given, message):
    with pytest.raises(ConfigError, match=message):
        task_names(given)
