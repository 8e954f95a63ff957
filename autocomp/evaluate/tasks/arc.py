"""ARC, the AI2 reasoning challenge: test files of its easy and its challenge part.

Reference: Clark et al. 2018, https://arxiv.org/abs/1803.05457
"""

from collections.abc import Iterator
from pathlib import Path

from autocomp.evaluate.tasks.choices import question_of
from autocomp.evaluate.tasks.sources import Adapter, Row, json_lines


def _rows(path: Path) -> Iterator[Row]:
    """Yield ``id, question, choices {text, label}, answerKey``."""
    for number, record in enumerate(json_lines(path)):
        question, choices, key = question_of(record)
        name = str(record.values.get("id", number))
        yield {"id": name, "question": question, "choices": choices, "answerKey": key}


ARC_EASY = Adapter("*arc?easy*", ("*test*.jsonl",), _rows)
ARC_CHALLENGE = Adapter("*arc?challenge*", ("*test*.jsonl",), _rows)
