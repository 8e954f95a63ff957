"""OpenBookQA: the test file of its main part.

Reference: Mihaylov et al. 2018, https://arxiv.org/abs/1809.02789
"""

from collections.abc import Iterator
from pathlib import Path

from autocomp.evaluate.tasks.choices import question_of
from autocomp.evaluate.tasks.sources import Adapter, Row, json_lines


def _rows(path: Path) -> Iterator[Row]:
    """Yield ``id, question_stem, choices {text, label}, answerKey``."""
    for number, record in enumerate(json_lines(path)):
        question, choices, key = question_of(record, "question_stem")
        name = str(record.values.get("id", number))
        yield {"id": name, "question_stem": question, "choices": choices, "answerKey": key}


OPENBOOKQA = Adapter("*openbookqa*", ("*test.jsonl",), _rows)
