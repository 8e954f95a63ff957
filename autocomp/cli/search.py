"""``autocomp search``: the search itself, from a model and a budget to finished plans."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from autocomp.cli.check import estimate_table
from autocomp.cli.console import console, progress, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import (
    Budget,
    Goal,
    Length,
    Output,
    Place,
    Source,
    Space,
    study_config,
)
from autocomp.cli.studies import StudyView, new_study_place, open_view, summarise
from autocomp.config import StudyConfig
from autocomp.core.errors import InfeasibleError
from autocomp.core.metric import KL, short_name
from autocomp.report.front import FrontInfo
from autocomp.report.table import (
    megabytes,
    render_efficiency,
    render_families,
    render_table,
    render_timings,
)

if TYPE_CHECKING:
    from autocomp.search.result import SearchResult


def search(
    source: Source,
    budget: Budget,
    goal: Goal,
    space: Space,
    length: Length,
    place: Place,
    output: Output,
) -> None:
    """Search under a budget; print the front, what each family costs, and how to export.

    Re-running the same command resumes; a larger --trials extends. Interrupt it at any time.

    - `autocomp search smollm2-135m --max-bytes 80MB --trials 60 --study-dir runs/80`
    - `autocomp search -c demo`
    - `autocomp search ./model --max-memory 8GB --context 8192 --batch 1 --timeout 30m`
    - `autocomp search smollm2-135m --max-bytes 80MB --objective task_error --tasks arc_easy,piqa`
    - `autocomp search smollm2-135m --max-bytes 80MB --max-decode-ms 0.05 --cost decode_ms`
    - `autocomp search -c study.yaml --set search.finalists=5 --json > result.json`
    """
    config = study_config(source, budget, space, length, goal)
    study_dir, storage = new_study_place(config, place)
    try:
        result = _searched(config, study_dir, storage, quiet=output.quiet)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"Everything measured is saved in {storage or study_dir}. Resume with the same "
            f"command:\n  {command_line()}"
        ) from error
    if output.json:
        show_json(result.to_json())
    else:
        view = open_view(storage or str(study_dir))
        info = summarise(view)
        show(*report(info), *closing(info, view, study_dir))
    if result.best is None:
        raise InfeasibleError(
            "no plan within the budget was finished. Raise --max-bytes, add smaller options, or "
            "give more --trials."
        )


def _searched(
    config: StudyConfig, study_dir: Path, storage: str | None, *, quiet: bool
) -> "SearchResult":
    """Estimate, refuse what is infeasible, and search."""
    from autocomp.search.estimate import estimate
    from autocomp.search.run import run_search
    from autocomp.search.setup import Setup

    quiet_libraries()
    if not quiet:
        console(stderr=True).print(estimate_table(estimate(config), config))
    Setup.of(config).check_feasible()
    with progress(quiet=quiet) as listener:
        listener.log(f"study: {storage or study_dir}")
        return run_search(config, study_dir=study_dir, storage=storage, progress=listener)


def report(info: FrontInfo) -> list[RenderableType]:
    """Return the tables of a front: plans, families and, where known, timings."""
    tables: list[RenderableType] = [render_table(info), render_families(info)]
    if info.joint is not None:
        tables.append(
            f"front of {' × '.join(info.joint['reference'])}: {len(info.joint['trials'])} plans, "
            f"hypervolume {info.joint['share']:.3g} of the box to the limits and worst baselines"
        )
    tables += [render_efficiency(info.efficiency)] if info.efficiency else []
    return tables + ([render_timings(info.timings)] if info.timings else [])


def closing(info: FrontInfo, view: StudyView, study_dir: Path) -> list[str]:
    """Return the last lines of a search: best against uniform, and what to run next."""
    place = shlex.quote(view.storage or str(study_dir))
    best, uniform = info.point(info.best), info.point(info.best_uniform)
    lines, name = [], short_name(info.metric)
    if best and best.heldout_loss is not None:
        trained = f", trained by {best.recovery}" if best.recovery else ""
        lines.append(
            f"best: trial {best.trial}{trained}, {megabytes(best.file_bytes)} MB, held-out "
            f"{name} {best.heldout_loss:.4f}{' nats' if info.metric == KL else ''}"
        )
        if uniform and info.heldout_ratio is not None:
            lines[0] += (
                f" = {info.heldout_ratio:.2f} × best uniform "
                f"(trial {uniform.trial}, {uniform.heldout_loss:.4f})"
            )
    return [
        *lines,
        f"plot:   autocomp front {place} --html front.html --plot front.png",
        f"export: autocomp export {place} --best --format native --out best",
    ]


def command_line() -> str:
    """Return the command that this process runs, as one would type it."""
    return shlex.join(["autocomp", *sys.argv[1:]])
