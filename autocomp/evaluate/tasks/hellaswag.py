"""HellaSwag: the validation file, or a plain text of it with six lines an item.

Reference: Zellers et al. 2019, https://arxiv.org/abs/1905.07830
"""

import re
from collections.abc import Iterator
from pathlib import Path

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.sources import Adapter, Row, json_lines, text_of

ENDINGS = 4
# A caption's context ends in the beginning of the next sentence; an article's is whole sentences.
_BEGUN = re.compile(r"(?P<whole>.*[.!?][\"')]*) (?P<begun>[^.!?]*)", re.DOTALL)


def _rows(path: Path) -> Iterator[Row]:
    """Yield ``activity_label, ctx_a, ctx_b, endings, label``."""
    yield from _json_rows(path) if path.suffix == ".jsonl" else _text_rows(path)


def _json_rows(path: Path) -> Iterator[Row]:
    """Read the release's rows."""
    allowed = [kind(index) for index in range(ENDINGS) for kind in (str, int)]
    for record in json_lines(path):
        endings = record.texts("endings")
        if len(endings) != ENDINGS:
            raise record.error(f"{ENDINGS} 'endings'")
        yield {
            "activity_label": record.text("activity_label"),
            "ctx_a": record.text("ctx_a"),
            "ctx_b": record.text("ctx_b", empty=True),
            "endings": endings,
            "label": str(record.one_of(("label",), allowed)),
        }


def _text_rows(path: Path) -> Iterator[Row]:
    """Read ``activity: context``, the label and the endings, a line each."""
    lines = text_of(path).removesuffix("\n").split("\n")
    size = 2 + ENDINGS
    for start in range(0, len(lines), size):
        first, label, *endings = [*lines[start : start + size], ""][:size]
        activity, colon, context = first.partition(": ")
        if (
            not colon
            or not context.strip()
            or label not in map(str, range(ENDINGS))
            or len(endings) != ENDINGS
            or not all(ending.strip() for ending in endings)
        ):
            raise ConfigError(
                f"{path}, line {start + 1}: expected six lines, 'activity: context', a label from "
                f"0 to {ENDINGS - 1} and {ENDINGS} endings; got {lines[start : start + size]}"
            )
        begun = _BEGUN.fullmatch(context)
        yield {
            "activity_label": activity,
            "ctx_a": begun["whole"] if begun else context,
            "ctx_b": begun["begun"] if begun else "",
            "endings": endings,
            "label": label,
        }


HELLASWAG = Adapter("*hellaswag*", ("*val*.jsonl", "*val*.txt", "*val*.txt.bz2"), _rows)
