"""Protocol windows against a few lines that do what the papers' code does."""

import gzip
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from autocomp.core.errors import ConfigError
from autocomp.data import PROTOCOLS, protocol_windows
from autocomp.models.tiny import byte_tokenizer

WIKITEXT = (
    "",
    " = Title = \n",
    "",
    " One paragraph , with \u2028 and \x85 inside . \n",
    " And é another . \n",
    "",
    " = = Part = = \n",
    "",
    "",
    " = = = Below = = = \n",
    "",
    " Last one . \n",
    "",
)
SENTENCES = ("no it was n't black monday", "but <unk> while the new york", "stock exchange N")
DOCUMENTS = tuple(f"{index}: " + "abcdefgh\n" * index for index in range(40))


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer, which puts BOS in front as Llama's does."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def bytes_of(text: str) -> list[int]:
    """Tokens of a text, told by the tokenizer's vocabulary and not by its call."""
    alphabet = byte_tokenizer().get_vocab()
    pieces = byte_tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [alphabet[letter] for piece, _ in pieces for letter in piece]


def cut(ids: Sequence[int], length: int) -> list[list[int]]:
    """Cut as the papers do, the tail dropped."""
    return [list(ids[i * length : (i + 1) * length]) for i in range(len(ids) // length)]


def rows_file(folder: Path, name: str, rows: Sequence[str]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(lines.encode() if path.suffix != ".gz" else gzip.compress(lines.encode()))
    return path


def raw_text(rows: Sequence[str]) -> str:
    """The file that WikiText's rows were made of; its blank lines hold a space."""
    return "".join(row or " \n" for row in rows)


def test_wikitext2_joins_all_rows_and_starts_with_one_bos(tmp_path: Path) -> None:
    path = rows_file(tmp_path, "any.jsonl", WIKITEXT)
    found = protocol_windows("wikitext2", bos_tokenizer(), length=16, file=path)
    expected = cut([1, *bytes_of("\n\n".join(WIKITEXT))], 16)
    assert found.input_ids.tolist() == expected
    assert (found.corpus, found.split, found.length) == ("wikitext2", "heldout", 16)
    assert (found.input_ids == 1).sum() == 1
    assert found.text_bytes == 16 * len(expected) - 1  # a byte a token, and BOS is no text
    plain = protocol_windows("wikitext2", byte_tokenizer(), length=16, file=path)
    assert plain.input_ids.tolist() == cut(bytes_of("\n\n".join(WIKITEXT)), 16)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_raw_file_gives_the_tokens_of_its_rows(tmp_path: Path, end: str) -> None:
    rows = protocol_windows(
        "wikitext2", bos_tokenizer(), length=8, file=rows_file(tmp_path, "a.jsonl", WIKITEXT)
    )
    (tmp_path / "wiki.test.raw").write_bytes(raw_text(WIKITEXT).replace("\n", end).encode())
    raw = protocol_windows("wikitext2", bos_tokenizer(), length=8, data_dir=tmp_path)
    assert raw.digest == rows.digest


def test_a_raw_file_without_blank_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(raw_text([row for row in WIKITEXT if row]))
    with pytest.raises(ConfigError, match="no blank lines"):
        protocol_windows("wikitext2", byte_tokenizer(), length=8, data_dir=tmp_path)
    same = path.rename(tmp_path / "mine.txt")
    found = protocol_windows("wikitext2", byte_tokenizer(), length=8, file=same)
    assert found.input_ids.tolist() == cut(bytes_of("\n\n".join(filter(None, WIKITEXT))), 8)


def test_rows_are_preferred_to_the_raw_file(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text(raw_text(WIKITEXT))
    rows_file(tmp_path, "deep/raw.test.rows.jsonl", ("the rows themselves",))
    found = protocol_windows("wikitext2", byte_tokenizer(), length=19, data_dir=tmp_path)
    assert byte_tokenizer().decode(found.input_ids[0]) == "the rows themselves"


@pytest.mark.parametrize(
    ("name", "file", "join"), [("ptb", "ptb.valid.txt", "\n\n"), ("ptb-new", "ptb.test.txt", " ")]
)
def test_penn_treebank(tmp_path: Path, name: str, file: str, join: str) -> None:
    (tmp_path / file).write_text("".join(f" {sentence} \n" for sentence in SENTENCES))
    found = protocol_windows(name, bos_tokenizer(), length=7, data_dir=tmp_path)
    assert found.input_ids.tolist() == cut([1, *bytes_of(join.join(SENTENCES))], 7)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_c4_draws_what_the_papers_drew(tmp_path: Path, packed: str) -> None:
    rows_file(tmp_path, f"c4-validation.00000-of-00008.json{packed}", DOCUMENTS)
    length = 150
    found = protocol_windows("c4", bos_tokenizer(), length=length, data_dir=tmp_path)
    random.seed(0)
    expected = []
    for _ in range(256):
        while True:
            i = random.randint(0, len(DOCUMENTS) - 1)
            ids = [1, *bytes_of(DOCUMENTS[i])]
            if len(ids) > length:
                break
        i = random.randint(0, len(ids) - length - 1)
        expected.append(ids[i : i + length])
    assert found.input_ids.tolist() == expected
    few = protocol_windows("c4", bos_tokenizer(), length=length, data_dir=tmp_path, limit=9)
    assert few.input_ids.tolist() == expected[:9]


def test_c4_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    path = rows_file(tmp_path, "c4.jsonl", DOCUMENTS)
    random.seed(5)
    state = random.getstate()
    protocol_windows("c4", byte_tokenizer(), length=100, file=path, limit=2)
    assert random.getstate() == state


def test_c4_new_takes_the_first_documents_and_windows(tmp_path: Path) -> None:
    documents = [f"{index:03d}" for index in range(1200)]
    path = rows_file(tmp_path, "c4.jsonl", documents)
    ids = [1, *bytes_of(" ".join(documents[:1100]))]
    found = protocol_windows("c4-new", bos_tokenizer(), length=40, file=path)
    assert found.input_ids.tolist() == cut(ids, 40)  # 4,400 tokens are less than 256 windows
    found = protocol_windows("c4-new", bos_tokenizer(), length=10, file=path)
    assert found.input_ids.tolist() == cut(ids[: 256 * 10], 10)


def test_a_limit_keeps_the_beginning(tmp_path: Path) -> None:
    path = rows_file(tmp_path, "a.jsonl", WIKITEXT)
    whole = protocol_windows("wikitext2", byte_tokenizer(), length=5, file=path)
    few = protocol_windows("wikitext2", byte_tokenizer(), length=5, file=path, limit=3)
    assert torch.equal(few.input_ids, whole.input_ids[:3])
    many = protocol_windows("wikitext2", byte_tokenizer(), length=5, file=path, limit=10**6)
    assert many.digest == whole.digest


def test_short_texts_are_refused_with_their_tokens(tmp_path: Path) -> None:
    path = rows_file(tmp_path, "a.jsonl", ("abc", "defg"))
    with pytest.raises(ConfigError, match="holds 10 tokens, less than one window of 11"):
        protocol_windows("wikitext2", bos_tokenizer(), length=11, file=path)
    with pytest.raises(ConfigError, match="longest of 2 documents holds 5 tokens"):
        protocol_windows("c4", bos_tokenizer(), length=5, file=path)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_bad_requests_are_refused(tmp_path: Path, name: str) -> None:
    path = rows_file(tmp_path, "rows.jsonl", ("some text", "more of it"))
    cases = (
        ({"length": 4, "data_dir": tmp_path}, "holds no file called"),
        ({"length": 4, "data_dir": tmp_path / "absent"}, "holds no file called"),
        ({"length": 4, "file": tmp_path / "absent.jsonl"}, "cannot be read"),
        ({"length": 4, "file": path.with_suffix(".parquet")}, "no text that a protocol reads"),
        ({"length": 1, "file": path}, "at least 2 tokens"),
        ({"length": 4, "file": path, "limit": 0}, "at least 1 window"),
    )
    for asked, message in cases:
        with pytest.raises(ConfigError, match=message):
            protocol_windows(name, byte_tokenizer(), **asked)
    with pytest.raises(ConfigError, match=f"Did you mean '{name}'"):
        protocol_windows(f"{name}x", byte_tokenizer(), length=4, file=path)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        rows_file(tmp_path, f"{folder}/wikitext-test.jsonl", WIKITEXT)
    with pytest.raises(ConfigError, match="several files"):
        protocol_windows("wikitext2", byte_tokenizer(), length=4, data_dir=tmp_path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c4.json.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 999)[:-9])
    with pytest.raises(ConfigError, match="cannot be read"):
        protocol_windows("c4", byte_tokenizer(), length=4, file=path)


class FakeDatasets:
    """Stands in for the ``datasets`` package and notes what was asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, object] = {}

    def load_dataset(self, repository: str, subset: str | None, **asked: object):
        self.asked = {"repository": repository, "subset": subset, **asked}
        column = "sentence" if "ptb" in repository else "text"
        return ({column: row} for row in ("", "the first row\n", "", "the last"))


@pytest.mark.parametrize(
    ("name", "split", "subset", "join"),
    [
        ("wikitext2", "test", "wikitext-2-raw-v1", "\n\n"),
        ("ptb", "validation", None, "\n\n"),
        ("ptb-new", "test", None, " "),
        ("c4-new", "validation", None, " "),
    ],
)
def test_the_hub_gives_all_rows_of_the_right_part(
    monkeypatch: pytest.MonkeyPatch, name: str, split: str, subset: str | None, join: str
) -> None:
    fake = FakeDatasets()
    monkeypatch.setitem(sys.modules, "datasets", fake)  # type: ignore[arg-type]
    found = protocol_windows(name, byte_tokenizer(), length=3)
    text = join.join(("", "the first row\n", "", "the last"))
    assert found.input_ids.tolist() == cut(bytes_of(text), 3)
    assert (fake.asked["split"], fake.asked["subset"]) == (split, subset)
    shard = {"validation": "en/c4-validation.00000-of-00008.json.gz"}
    assert fake.asked["data_files"] == (shard if name == "c4-new" else None)
