"""WinoGrande: the development file.

Reference: Sakaguchi et al. 2019, https://arxiv.org/abs/1907.10641
"""

from collections.abc import Iterator
from pathlib import Path

from autocomp.evaluate.tasks.sources import Adapter, Row, json_lines


def _rows(path: Path) -> Iterator[Row]:
    """Yield ``sentence`` with a blank ``_``, ``option1, option2`` and ``answer``, "1" or "2"."""
    for record in json_lines(path):
        sentence = record.text("sentence")
        if "_" not in sentence:
            raise record.error("'sentence' with a blank, _")
        yield {
            "sentence": sentence,
            "option1": record.text("option1"),
            "option2": record.text("option2"),
            "answer": record.one_of(("answer",), ("1", "2")),
        }


WINOGRANDE = Adapter("*winogrande*", ("*dev*.jsonl", "*val*.jsonl"), _rows)
