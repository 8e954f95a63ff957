"""PIQA: the validation file, whose labels may lie in a file of their own.

Reference: Bisk et al. 2019, https://arxiv.org/abs/1911.11641
"""

from collections.abc import Iterator
from pathlib import Path

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.sources import Adapter, Record, Row, json_lines, text_of


def _rows(path: Path) -> Iterator[Row]:
    """Yield ``goal, sol1, sol2, label``; 0 is the first solution."""
    records = list(json_lines(path))
    if records and "label" not in records[0].values:
        records = _labelled(path, records)
    for record in records:
        row = {name: record.text(name) for name in ("goal", "sol1", "sol2")}
        yield row | {"label": int(record.one_of(("label",), (0, 1)))}


def _labelled(path: Path, records: list[Record]) -> list[Record]:
    """Return the rows with the labels of the file beside theirs, one a line."""
    place = path.with_name(f"{path.stem}-labels.lst")
    if not place.exists():
        raise ConfigError(
            f"the rows of {path} have no 'label', and there is no {place} with one a line."
        )
    labels = text_of(place).split()
    if len(labels) != len(records):
        raise ConfigError(
            f"{place} holds {len(labels)} labels for the {len(records)} rows of {path.name}."
        )
    for number, label in enumerate(labels, start=1):
        if label not in ("0", "1"):
            raise ConfigError(f"{place}, label {number}: expected 0 or 1, got {label!r}.")
    return [
        Record(record.where, record.values | {"label": int(label)})
        for record, label in zip(records, labels, strict=True)
    ]


PIQA = Adapter("*piqa*", ("*valid*.jsonl", "*dev*.jsonl"), _rows)
