"""Kept calls: what is made once is not made again, and damage is noticed."""

import pytest
import torch

from autocomp.core.errors import ConfigError, InfeasibleError
from autocomp.core.progress import Silent
from autocomp.core.recipe import CalibrationText, parse_recipe
from autocomp.data import interleave, recipe_folder, recipe_windows, windows
from autocomp.data.corpus import Corpus
from autocomp.formats.io import save
from autocomp.models.tiny import byte_tokenizer
from autocomp.testing.recipes import ToyTeacher

SPEC = parse_recipe("selfgen-t1")
A_CALL = 32 * 12  # tokens of a call at the toy teacher's length


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path))
    return tmp_path


def make(teacher, tokens=3 * A_CALL, **settings):
    return recipe_windows(SPEC, teacher, byte_tokenizer(), tokens=tokens, **settings)


class Killed(ToyTeacher):
    """A teacher that dies in its third call."""

    def sample(self, *arguments):
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().sample(*arguments)


def test_windows_of_a_recipe():
    found = make(ToyTeacher())
    assert found.input_ids.shape == (96, 12)
    assert (found.corpus, found.split, found.length) == ("selfgen-t1", "calibration", 12)
    decoded = byte_tokenizer().batch_decode(found.input_ids)
    assert found.text_bytes == sum(len(text.encode()) for text in decoded)
    again = make(ToyTeacher(), seed=1)
    assert again.digest != found.digest


def test_a_killed_run_goes_on_where_it_was():
    with pytest.raises(KeyboardInterrupt):
        make(Killed())
    teacher = ToyTeacher()
    found = make(teacher)
    assert teacher.calls == 1
    kept = ToyTeacher()
    assert make(kept).digest == found.digest
    assert kept.calls == 0


def test_the_calls_of_a_smaller_request_are_used():
    small = make(ToyTeacher(), tokens=A_CALL + 12)
    teacher = ToyTeacher()
    large = make(teacher, tokens=3 * A_CALL)
    assert teacher.calls == 1
    assert torch.equal(large.input_ids[:33], small.input_ids)


def test_everything_that_changes_the_text_changes_the_folder():
    teacher = ToyTeacher()
    folders = {
        recipe_folder(SPEC, teacher, 0),
        recipe_folder(SPEC, teacher, 1),
        recipe_folder(parse_recipe("selfgen-t0.9"), teacher, 0),
        recipe_folder(SPEC, ToyTeacher(length=13), 0),
        recipe_folder(SPEC, ToyTeacher(size=41), 0),
    }
    assert len(folders) == 5


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other ids", "no digest"])
def test_a_damaged_file_is_made_again(damage):
    found = make(ToyTeacher())
    path = recipe_folder(SPEC, ToyTeacher(), 0) / "000001.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[:-100])
    elif damage == "flipped":
        data[-8] ^= 1
        path.write_bytes(data)
    elif damage == "other ids":
        save(path, {"ids": torch.zeros(32, 5, dtype=torch.int64)})
    else:
        save(path, {"ids": found.input_ids[:32]})
    teacher = ToyTeacher()
    assert make(teacher).digest == found.digest
    assert teacher.calls == 1
    assert make(ToyTeacher(), max_calls=0).digest == found.digest


def test_the_spend_limit_keeps_what_was_made():
    first = ToyTeacher()
    with pytest.raises(InfeasibleError, match=r"768 of 1152 tokens after the 2 calls"):
        make(first, max_calls=2)
    second = ToyTeacher()
    make(second, max_calls=2)
    assert (first.calls, second.calls) == (2, 1)


def test_progress_counts_windows():
    class Count(Silent):
        done = 0

        def start(self, stage, total=None, unit=""):
            self.stage = stage, total, unit

        def advance(self, amount=1, note=""):
            self.done += amount

    listener = Count()
    make(ToyTeacher(), tokens=2 * A_CALL - 12, progress=listener)
    assert listener.stage == ("text by selfgen-t1", 63, "window")
    assert listener.done == 63


def test_less_than_a_window_is_refused():
    with pytest.raises(ConfigError, match="at least one window"):
        make(ToyTeacher(), tokens=11)


@pytest.mark.parametrize("count", [4, 5])
def test_a_mix_takes_turns(count):
    corpus = Corpus("letters", "", ("abcdefghijkl" * 20,), ("a",), ("b",))
    tokenizer = byte_tokenizer()
    first = windows(corpus, "calibration", tokenizer, tokens=12 * (count - 2), length=12)
    second = make(ToyTeacher(), tokens=24)
    mixed = interleave(first, second, tokenizer)
    assert torch.equal(mixed.input_ids[::2], first.input_ids)
    assert torch.equal(mixed.input_ids[1::2], second.input_ids)
    assert (mixed.corpus, mixed.split) == ("letters+selfgen-t1", "calibration")
    assert mixed.text_bytes == first.text_bytes + second.text_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("selfgn-t1", "Did you mean 'selfgen'.*Known: corpus, selfgen"),
        ("gptq-w4g64", "unknown data recipe 'gptq-w4g64'"),
        ("corpsu", "Did you mean 'corpus'"),
        ("mix:corpus", "unknown data recipe 'corpus'"),
        ("", "unknown data recipe ''"),
    ],
)
def test_unknown_sources_name_the_nearest(text, message):
    with pytest.raises(ConfigError, match=message):
        CalibrationText.parse(text)


@pytest.mark.parametrize("token", ["corpus", "selfgen-t1", "mix:selfgen-t0.7"])
def test_sources_round_trip(token):
    assert CalibrationText.parse(token).token() == token
