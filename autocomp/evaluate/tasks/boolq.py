"""BoolQ: the development file of the release or of SuperGLUE.

Reference: Clark et al. 2019, https://arxiv.org/abs/1905.10044
"""

from collections.abc import Iterator
from pathlib import Path

from autocomp.evaluate.tasks.sources import Adapter, Row, json_lines


def _rows(path: Path) -> Iterator[Row]:
    """Yield ``passage, question, label``; 1 is yes.

    The release's questions have no question mark, as the task adds one; copies that have it lose
    it here.
    """
    for record in json_lines(path):
        yield {
            "passage": record.text("passage"),
            "question": record.text("question").removesuffix("?"),
            "label": int(record.one_of(("label", "answer"), (0, 1, False, True))),
        }


BOOLQ = Adapter("*boolq*", ("*dev*.jsonl", "*val*.jsonl"), _rows)
