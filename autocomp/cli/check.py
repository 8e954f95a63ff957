"""``autocomp check``: parse, count the space and estimate, without weights."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

from rich.table import Table
from typer import Option

from autocomp.cli.console import show, show_json
from autocomp.cli.options import Budget, Goal, Output, Source, Space, study_config
from autocomp.config import StudyConfig
from autocomp.core.cost import format_cost
from autocomp.report.table import megabytes

if TYPE_CHECKING:
    from autocomp.search.estimate import Estimate


def check(
    source: Source,
    budget: Budget,
    goal: Goal,
    space: Space,
    output: Output,
    schema: Annotated[
        bool, Option("--schema", help="Print the JSON schema of study.yaml, for editors.")
    ] = False,
) -> None:
    """Parse, count the space, estimate time, disk and RAM, and name the reachable costs.

    Reads no weights. Exit code 3 when the limits cannot be met, alone or together.

    - `autocomp check smollm2-135m --max-bytes 80MB`
    - `autocomp check smollm2-135m --max-decode-ms 0.05 --cost-device rtx4090 --max-memory 1GB`
    - `autocomp check -c study.yaml --json`
    - `autocomp check --schema > study.schema.json`
    """
    if schema:
        show_json(StudyConfig.model_json_schema())
        return
    config = study_config(source, budget, space, goal=goal)
    from autocomp.search.estimate import estimate
    from autocomp.search.setup import Setup

    found = estimate(config)
    if output.json:
        show_json(
            {"config": config.model_dump(mode="json"), "estimate": dataclasses.asdict(found)}
        )
    else:
        show(estimate_table(found, config))
    Setup.of(config).check_feasible()


def estimate_table(found: "Estimate", config: StudyConfig) -> Table:
    """Return what the work will take, as a table."""
    table = Table(title=f"Estimate for {config.model}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("decisions", str(found.groups))
    table.add_row("compressed layers to make", str(found.options))
    table.add_row("plans in the space", f"10^{found.space_size_log10:.0f}")
    for cost, reach in found.costs.items():
        source = "" if reach.source == "exact" else f" ({reach.source}, {config.budget.device})"
        ends = (format_cost(cost, value) for value in (reach.smallest, reach.largest))
        table.add_row(f"{cost}, reachable{source}", " to ".join(ends))
        if reach.limit is not None:
            table.add_row(f"{cost}, limit", format_cost(cost, reach.limit))
    for stage, minutes in found.minutes.items():
        table.add_row(f"time, {stage}", f"{minutes:.1f} min")
    table.add_row("disk", f"{megabytes(found.disk_bytes)} MB")
    table.add_row("RAM", f"{megabytes(found.ram_bytes)} MB")
    return table
