"""``autocomp data`` on a tiny model."""

import json

import pytest

from autocomp.cli import data as command
from autocomp.data import load_corpus
from autocomp.models.tiny import byte_tokenizer


@pytest.fixture
def arguments(tiny_llama_path):
    return ("data", tiny_llama_path, "--tokens", 160, "--window", 16, "--json")


def test_ids_and_text_are_written(run, arguments, tmp_path):
    out = tmp_path / "new" / "text.jsonl"
    answer = run(*arguments, "--out", out)
    assert answer.code == 0
    found = json.loads(answer.out)
    assert (found["recipe"], found["tokens"], found["window"]) == ("selfgen-t1", 160, 16)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(row["ids"]) for row in rows] == [16] * 10
    tokenizer = byte_tokenizer()
    assert all(row["text"] == tokenizer.decode(row["ids"]) for row in rows)
    assert found["first"] == rows[0]["text"]
    assert found["text_bytes"] == sum(len(row["text"].encode()) for row in rows)
    corpus = load_corpus(str(out))  # the file is a corpus too
    assert len([*corpus.calibration, *corpus.search, *corpus.heldout]) == 10


def test_a_second_run_uses_what_was_made(run, arguments):
    first, second = run(*arguments), run(*arguments, "--max-calls", 1)
    assert json.loads(first.out) == json.loads(second.out)
    assert "1 calls made, 0 kept" in first.err
    assert "0 calls made, 1 kept" in second.err


def test_seed_and_temperature_choose_the_text(run, arguments):
    digests = {
        json.loads(run(*arguments, *extra).out)["digest"]
        for extra in ((), ("--seed", 1), ("--recipe", "selfgen-t0.7"))
    }
    assert len(digests) == 3


def test_the_spend_limit_exits_with_3(run, arguments):
    answer = run(*arguments, "--tokens", 16 * 33, "--max-calls", 1)
    assert answer.code == 3
    assert "512 of 528 tokens" in answer.err


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("selfgn-t1", "Did you mean 'selfgen'"), ("selfgen", "selfgen-t<temperature>")],
)
def test_bad_recipes_exit_with_2_before_anything_is_loaded(run, recipe, message):
    answer = run("data", "no-such-model", "--recipe", recipe)
    assert answer.code == 2
    assert message in answer.err


def test_text_for_people(run, arguments):
    out = run(*arguments[:-1]).out
    assert "10 windows of 16 tokens by selfgen-t1" in out
    assert "the first: " in out


def test_lines_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "text.jsonl"
    command.write_lines(path, [{"text": "a\u2028b"}])
    assert json.loads(path.read_text().splitlines()[0]) == {"text": "a\u2028b"}
    with pytest.raises(TypeError):
        command.write_lines(path, [{"text": object()}])
    assert json.loads(path.read_text()) == {"text": "a\u2028b"}
