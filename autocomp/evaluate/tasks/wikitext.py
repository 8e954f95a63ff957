"""WikiText-2 as whole pages, which begin at top-level headings.

Reference: Merity et al. 2016, https://arxiv.org/abs/1609.07843
"""

import re
from collections.abc import Iterator
from pathlib import Path

from autocomp.evaluate.tasks.sources import Adapter, Row, json_lines, text_of

_TOP_HEADING = re.compile(r"= (?!= ).*(?<! =) =")


def _rows(path: Path) -> Iterator[Row]:
    """Yield ``page``: from rows that are pages or lines, or from a raw file.

    Pages keep the blank lines of the text, whose bytes and tokens count. The hub's line rows have
    them as empty texts; a raw file from which they were taken gives other figures.
    """
    if path.suffix != ".jsonl":
        yield from _pages(text_of(path))
        return
    records = list(json_lines(path))
    if records and "page" in records[0].values:
        yield from ({"page": record.text("page")} for record in records)
        return
    lines = [record.text("text", empty=True).removesuffix("\n") or " " for record in records]
    yield from _pages("".join(f"{line}\n" for line in lines))


def _pages(text: str) -> Iterator[Row]:
    """Yield the pages of a raw text."""
    pages: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _TOP_HEADING.fullmatch(line.strip()):
            pages.append([])
        pages[-1].append(line)
    joined = ("\n".join(page) for page in pages)
    yield from ({"page": page} for page in joined if page.strip())


WIKITEXT = Adapter("*wikitext*", ("*test*.jsonl", "*test.raw"), _rows)
