"""Rich tables of a front, its families and its timings."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autocomp.core.cost import LIMITS, WEIGHT_BYTES, format_cost, shown, title_of
from autocomp.core.metric import KL, positive, short_name, unit_of
from autocomp.report.front import FrontInfo, Point


def megabytes(count: float | None) -> str:
    """Return bytes as decimal megabytes, ``79.98`` or ``0.0394``; a dash for ``None``."""
    return "–" if count is None else f"{count / 1e6:.{2 if count >= 1e6 else 4}f}"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with fixed digits; a dash for ``None``."""
    return "–" if value is None else f"{value:.{digits}f}"


def axis_title(metric: str) -> str:
    """Return the title of an axis of a metric."""
    name = "KL from the base model" if metric == KL else metric
    return f"{name}, {unit_of(metric)}"


def drawn(loss: float | None) -> float | None:
    """Return a loss as it is drawn on a logarithmic axis."""
    return None if loss is None else positive(loss)


def describe(settings: Mapping[str, Any]) -> str:
    """Return the line that every figure carries: model, corpus, window, tokens, budget."""
    limits = {setting: cost for cost, setting in LIMITS.items()}
    names = {"max_bytes": "budget", "max_memory": "memory", "max_decode_ms": "decoding",
             "max_prefill_ms": "prefill", "max_flops": "operations"}  # fmt: skip
    parts = []
    for key, value in settings.items():
        if value is None:
            continue
        text = format_cost(limits[key], value) if key in limits else str(value)
        parts.append(f"{names.get(key, key)} {text}")
    return " · ".join(parts)


def render_table(info: FrontInfo) -> RenderableType:
    """Return the front table with separate searched and finished columns."""
    name = short_name(info.metric)
    caption = f"{describe(info.settings)} · {name} in {unit_of(info.metric)}"
    table = Table(title="Front", caption=caption, title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("family", no_wrap=True)
    table.add_column("from", no_wrap=True)
    if info.cost != WEIGHT_BYTES:
        table.add_column(title_of(info.cost, info.source).replace(", ", "\n"), justify="right")
    headings = ["MB\nsearched", f"{name}\nsearched", "MB\nfile", f"{name}\nheld-out"]
    if info.metric != KL:
        headings.append("KL\nheld-out")
    for heading in (*headings, "ppl"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for point in info.front:
        cells = _cells(point, info)
        table.add_row(*cells, _mark(info, point), style=_style(info, point))
    parts: list[RenderableType] = [table]
    parts += map(Text, info.conclusion.lines(info.metric))
    return Group(*parts)


def render_families(info: FrontInfo) -> Table:
    """Return the loss of each family at equal cost."""
    table = Table(title="Families at equal cost", title_justify="left")
    table.add_column("family", no_wrap=True)
    value = "KL nats" if info.metric == KL else info.metric
    for heading in ("measured", "best trial", "MB", value, "× best"):
        table.add_column(heading, justify="right")
    for row in info.families:
        table.add_row(
            row["family"],
            str(row["measured"]),
            str(row["trial"]),
            megabytes(row["weight_bytes"]),
            number(row[info.metric]),
            number(row["over_best"], 2),
        )
    return table


def render_efficiency(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return size, operations and times of finished plans beside those of the base.

    Args:
        rows: ``trial`` and the JSON of its :class:`~autocomp.evaluate.record.Efficiency`.
    """
    table = Table(title="Efficiency of finished plans", title_justify="left")
    for heading in ("trial", "MB", "× smaller", "MFLOP\na token"):
        table.add_column(heading, justify="right")
    for heading in ("decoding\nms", "× faster", "FLOP\na byte", "MFU"):
        table.add_column(heading, justify="right")
    table.add_column("times are")
    for row in rows:
        table.add_row(*efficiency_cells(row))
    return table


def efficiency_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one plan; dashes where it has no times."""
    cells = [
        str(row["trial"]),
        megabytes(row["weight_bytes"]),
        number(row["compression_ratio"], 2),
        number(row["flops_per_token"] / 1e6, 1),
    ]
    speed = row.get("speed")
    if not speed:
        return [*cells, *"––––", ""]
    return [
        *cells,
        f"{speed['decode_ms']:.4g}",
        number(speed["speedup"], 2),
        number(speed["intensity"], 2),
        f"{speed['mfu']:.2%}",
        f"{speed['source']}, {speed['device']}, batch {speed['batch']}, "
        f"context {speed['context']}",
    ]


def render_timings(timings: Sequence[Mapping[str, Any]]) -> Table:
    """Return wall time, its share of the whole, and peak memory, a stage a row."""
    table = Table(title="Time and memory", title_justify="left")
    table.add_column("stage")
    for heading in ("seconds", "share", "peak MB"):
        table.add_column(heading, justify="right")
    for row in timings:
        table.add_row(
            row["stage"],
            number(row["seconds"], 1),
            f"{row['share']:.1%}",
            f"{row['peak_rss_bytes'] / 1e6:.0f}",
        )
    return table


def _cells(point: Point, info: FrontInfo) -> tuple[str, ...]:
    heldout = number(point.heldout_loss)
    if point.heldout_se is not None:
        heldout += f" ±{point.heldout_se:.4f}"
    return (
        str(point.trial),
        point.family,
        point.origin,
        *([] if info.cost == WEIGHT_BYTES else [f"{shown(info.cost, point.cost):.4g}"]),
        megabytes(point.weight_bytes),
        number(point.loss),
        megabytes(point.file_bytes),
        heldout,
        *([] if info.metric == KL else [number(point.heldout_kl_nats)]),
        number(point.perplexity, 3),
    )


def _mark(info: FrontInfo, point: Point) -> str:
    marks = {info.best: "best", info.best_uniform: "best uniform"}
    mark = marks.get(point.trial, "" if point.on_front else "dominated")
    if info.best == info.best_uniform == point.trial:
        mark = "best, uniform"
    return ", ".join(filter(None, (mark, point.recovery)))


def _style(info: FrontInfo, point: Point) -> str:
    if point.trial == info.best:
        return "bold green"
    return "" if point.on_front else "dim"
