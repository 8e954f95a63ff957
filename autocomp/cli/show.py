"""``autocomp show``: a plan layer by layer, with the price of every alternative."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from rich.console import RenderableType
from rich.table import Table
from typer import Argument, Option

from autocomp.cli.console import show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output
from autocomp.cli.studies import choose_trial, open_view
from autocomp.core.cost import format_cost
from autocomp.core.metric import KL, short_name
from autocomp.report.table import megabytes, number, render_efficiency

if TYPE_CHECKING:
    from autocomp.search.explain import Alternative, PlanTable

CAPTION = (
    "{0}: predicted, corrected by what the study measured. Alternatives: the nearest smaller and "
    "larger options; change of bytes, change of {0}, its price a megabyte"
)
MARGINS = (
    "Change of {0} a megabyte: what the next smaller option of a kind (−) adds, and what the next "
    "larger one (+) takes off; which they are: --json"
)


def show_plan(
    study: Annotated[str, Argument(help="Study directory or storage URL.")],
    output: Output,
    trial: Annotated[int | None, Option(help="Trial number; the best when not given.")] = None,
    alternatives: Annotated[
        int, Option(help="Smaller and larger options to show for each layer.", min=0)
    ] = 1,
) -> None:
    """Show why each layer got its bits: bytes, predicted loss, and what a change would cost.

    A second table prices bits, sparsity and rank at the margin of every layer.

    - `autocomp show runs/demo`
    - `autocomp show runs/demo --trial 17 --alternatives 4`
    """
    quiet_libraries()
    view = open_view(study)
    chosen = choose_trial(view, trial=trial, best=trial is None)
    from autocomp.search.explain import show_trial

    found = show_trial(view.study_dir, view.storage, chosen)
    if output.json:
        show_json(found.to_json())
    else:
        show(plan_table(found, alternatives), margin_table(found), *facts(found))


def facts(found: "PlanTable") -> list[RenderableType]:
    """Return what the plan costs, with where that comes from, and its efficiency if finished."""
    from autocomp.search.reprice import finished_efficiency

    record, parts = found.record, []
    for cost, value in record.costs.items():
        parts.append(f"{cost} {format_cost(cost, value)} ({record.source_of(cost)})")
    rows = finished_efficiency([record])
    lines: list[RenderableType] = ["costs: " + ", ".join(parts)] if parts else []
    return lines + ([render_efficiency(rows)] if rows else [])


def plan_table(found: "PlanTable", count: int) -> Table:
    """Return a plan as a table, with the ``count`` nearest smaller and larger options a layer."""
    record, name = found.record, short_name(found.metric)
    table = Table(
        title=f"trial {record.number} · {record.family} · {megabytes(found.weight_bytes)} MB · "
        f"{name} {number(record.loss)} measured, {number(found.predicted_loss)} predicted",
        title_justify="left",
        caption=CAPTION.format(name),
    )
    table.add_column("site", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("option", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    value = "KL nats" if found.metric == KL else found.metric
    table.add_column(value, justify="right", no_wrap=True)
    table.add_column("alternatives", overflow="fold")
    for row in found.rows:
        table.add_row(
            row.site,
            "×".join(map(str, row.shape)) if row.shape[0] else "",
            row.token,
            f"{row.bytes:,}",
            f"{row.loss:.2e}",
            "\n".join(map(_line, nearest_sizes(row.alternatives, count))),
        )
    return table


def nearest_sizes(options: Sequence["Alternative"], count: int) -> list["Alternative"]:
    """Return the ``count`` nearest smaller and larger options that are worth a thought."""
    from autocomp.search.explain import worthwhile

    ordered = worthwhile(options)
    smaller = [option for option in ordered if option.delta_bytes < 0]
    larger = [option for option in ordered if option.delta_bytes >= 0]
    return smaller[max(0, len(smaller) - count) :] + larger[:count]


def margin_table(found: "PlanTable") -> Table:
    """Return the price of the next smaller and of the next larger option of every kind."""
    name = short_name(found.metric)
    rows = [(row, row.margins) for row in found.rows]
    kinds = list(dict.fromkeys(kind for _, margins in rows for kind in margins))
    table = Table(title="Prices at the margin", title_justify="left", caption=MARGINS.format(name))
    table.add_column("site", no_wrap=True)
    table.add_column("option", no_wrap=True)
    for kind in kinds:
        for step in ("−", "+"):
            table.add_column(f"{kind}\n{step}", justify="right", no_wrap=True)
    for row, margins in rows:
        steps: list[Alternative | None] = []
        for kind in kinds:
            margin = margins.get(kind)
            steps += [margin.cheaper, margin.dearer] if margin else [None, None]
        cells = ("" if step is None else f"{step.price:.2g}" for step in steps)
        table.add_row(row.site, row.token, *cells)
    return table


def _line(option: "Alternative") -> str:
    return (
        f"{option.token}: {option.delta_bytes:+,} B, {option.delta_loss:+.2e}, "
        f"{option.price:.2g}/MB"
    )
