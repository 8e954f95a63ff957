"""``autocomp check``: parse, count the space and estimate, without weights."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

from rich.table import Table
from typer import Option

from autocomp.cli.console import show, show_json
from autocomp.cli.options import Budget, Output, Source, Space, study_config
from autocomp.config import StudyConfig
from autocomp.report.table import megabytes

if TYPE_CHECKING:
    from autocomp.search.estimate import Estimate


def check(
    source: Source,
    budget: Budget,
    space: Space,
    output: Output,
    schema: Annotated[
        bool, Option("--schema", help="Print the JSON schema of study.yaml, for editors.")
    ] = False,
) -> None:
    """Parse, count the space, estimate time, disk and RAM, and name the reachable sizes.

    Reads no weights. Exit code 3 when the budget cannot be met.

    - `autocomp check smollm2-135m --max-bytes 80MB`
    - `autocomp check -c study.yaml --json`
    - `autocomp check --schema > study.schema.json`
    """
    if schema:
        show_json(StudyConfig.model_json_schema())
        return
    config = study_config(source, budget, space)
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
    table.add_row("smallest reachable file", f"{megabytes(found.smallest_bytes)} MB")
    table.add_row("largest file", f"{megabytes(found.largest_bytes)} MB")
    if config.budget.max_bytes is not None:
        table.add_row("budget", f"{megabytes(config.budget.max_bytes)} MB")
    if config.budget.max_memory is not None:
        table.add_row("memory budget", f"{megabytes(config.budget.max_memory)} MB")
    for stage, minutes in found.minutes.items():
        table.add_row(f"time, {stage}", f"{minutes:.1f} min")
    table.add_row("disk", f"{megabytes(found.disk_bytes)} MB")
    table.add_row("RAM", f"{megabytes(found.ram_bytes)} MB")
    return table
