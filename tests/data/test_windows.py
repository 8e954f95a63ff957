import pytest
import torch

from autocomp.core.errors import ConfigError
from autocomp.data import Corpus, windows
from autocomp.models.tiny import byte_tokenizer

TEXT = "".join(chr(97 + index % 26) for index in range(1000))
CORPUS = Corpus("letters", "", calibration=(TEXT,), search=("ab", "cd"), heldout=("é" * 50,))


def test_windows_are_spread_and_do_not_overlap() -> None:
    found = windows(CORPUS, "calibration", byte_tokenizer(), tokens=250, length=25)
    ids = torch.tensor(byte_tokenizer()(TEXT)["input_ids"])
    expected = {tuple(ids[100 * index : 100 * index + 25].tolist()) for index in range(10)}
    assert found.input_ids.shape == (10, 25)
    assert {tuple(row) for row in found.input_ids.tolist()} == expected
    assert (found.tokens, found.length, found.text_bytes) == (250, 25, 250)
    assert (found.corpus, found.split) == ("letters", "calibration")


def test_whole_text_is_covered_when_asked_for() -> None:
    found = windows(CORPUS, "calibration", byte_tokenizer(), tokens=1000, length=100)
    text = sorted(byte_tokenizer().batch_decode(found.input_ids))
    assert text == sorted(TEXT[index : index + 100] for index in range(0, 1000, 100))


def test_order_is_seeded_and_spread() -> None:
    first, again, other = (
        windows(CORPUS, "calibration", byte_tokenizer(), tokens=1000, length=10, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.input_ids, again.input_ids)
    assert first.digest == again.digest != other.digest
    assert sorted(first.input_ids.tolist()) == sorted(other.input_ids.tolist())
    assert first.input_ids.tolist() != other.input_ids.tolist()


def test_documents_are_joined_by_blank_lines() -> None:
    found = windows(CORPUS, "search", byte_tokenizer(), tokens=6, length=6)
    assert byte_tokenizer().decode(found.input_ids[0]) == "ab\n\ncd"


def test_bytes_are_not_characters() -> None:
    found = windows(CORPUS, "heldout", byte_tokenizer(), tokens=100, length=10)
    assert found.text_bytes == 100


def test_digest_tells_window_lengths_apart() -> None:
    whole = windows(CORPUS, "calibration", byte_tokenizer(), tokens=100, length=100)
    halves = windows(CORPUS, "calibration", byte_tokenizer(), tokens=100, length=50)
    assert whole.digest != halves.digest


def test_short_text_is_refused_with_what_fits() -> None:
    with pytest.raises(ConfigError, match=r"holds 1000 tokens.*at most 960 in windows of 64"):
        windows(CORPUS, "calibration", byte_tokenizer(), tokens=2048, length=64)


def test_short_text_gives_what_it_has_where_fewer_will_do() -> None:
    few = {"length": 64, "fewer": True}
    short = windows(CORPUS, "calibration", byte_tokenizer(), tokens=2048, **few)
    assert short.input_ids.shape == (15, 64)
    enough = windows(CORPUS, "calibration", byte_tokenizer(), tokens=128, **few)
    assert enough.input_ids.shape == (2, 64)
    with pytest.raises(ConfigError, match="holds 6 tokens"):
        windows(CORPUS, "search", byte_tokenizer(), tokens=128, **few)


@pytest.mark.parametrize(("tokens", "length"), [(10, 20), (10, 1), (0, 0)])
def test_less_than_one_window_is_refused(tokens: int, length: int) -> None:
    with pytest.raises(ConfigError, match="at least one window"):
        windows(CORPUS, "calibration", byte_tokenizer(), tokens=tokens, length=length)
