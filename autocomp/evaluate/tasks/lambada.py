"""LAMBADA as OpenAI detokenized it: the last word of each passage is to be predicted.

Reference: Paperno et al. 2016, https://arxiv.org/abs/1606.06031
"""

from collections.abc import Iterator
from pathlib import Path

from autocomp.evaluate.tasks.sources import Adapter, Row, json_lines


def _rows(path: Path) -> Iterator[Row]:
    """Yield ``text``."""
    for record in json_lines(path):
        text = record.text("text")
        if not all(text.rpartition(" ")[::2]):
            raise record.error("'text' that ends with a word to predict")
        yield {"text": text}


LAMBADA = Adapter("*lambada*", ("lambada_test.jsonl", "*test*.jsonl"), _rows)
