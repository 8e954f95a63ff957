"""``autocomp front``: table, picture and report of a study."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from autocomp.cli.console import say, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output
from autocomp.cli.search import report
from autocomp.cli.studies import StudyView, open_view, summarise
from autocomp.core.cost import DECODE_MS, LIMITS, MODELLED, SOURCES, TIMES
from autocomp.core.errors import AutocompError, ConfigError
from autocomp.report.bits import BitsMap, bits_map
from autocomp.report.front import FrontInfo
from autocomp.report.html import render_html
from autocomp.report.png import render_png


@dataclass(frozen=True)
class Price:
    """Another cost than the one that the study minimises; nothing is measured again."""

    cost: Annotated[
        str | None,
        Option(help=f"Price the trials anew: {', '.join(LIMITS)}.", rich_help_panel="Price"),
    ] = None
    cost_device: Annotated[
        str | None,
        Option(help="Device of their times (autocomp ls devices).", rich_help_panel="Price"),
    ] = None
    times: Annotated[
        str | None,
        Option(help=f"{', '.join(SOURCES[1:])}; modelled.", rich_help_panel="Price"),
    ] = None
    context: Annotated[
        int | None, Option(help="Tokens a sequence; the study's.", rich_help_panel="Price", min=1)
    ] = None
    batch: Annotated[
        int | None, Option(help="Sequences; the study's.", rich_help_panel="Price", min=1)
    ] = None


def front(
    study: Annotated[str, Argument(help="Study directory or storage URL.")],
    price: Price,
    output: Output,
    plot: Annotated[Path | None, Option(help="Write a PNG, with CSV and JSON beside.")] = None,
    html: Annotated[
        Path | None, Option(help="Write an interactive offline report, with CSV and JSON beside.")
    ] = None,
) -> None:
    """Show the front of a study: searched and finished values in separate columns.

    - `autocomp front runs/demo`
    - `autocomp front runs/demo --plot front.png --html front.html`
    - `autocomp front sqlite:///study.db --json`
    - `autocomp front runs/demo --cost-device rtx4090`: the same trials, priced for that device
    """
    quiet_libraries()
    view = open_view(study)
    info = priced(view, price)
    written = []
    if plot is not None:
        render_png(info, plot)
        written += [plot, *write_numbers(info, plot)]
    if html is not None:
        render_html(info, html, best_bits(view, info))
        written += [html, *write_numbers(info, html)]
    if output.json:
        show_json(info.to_json())
    else:
        show(*report(info))
    for path in dict.fromkeys(written):
        say(f"wrote {path}")


def priced(view: StudyView, price: Price) -> FrontInfo:
    """Return the front of a study, priced anew where that was asked for.

    Raises:
        ConfigError: If the cost, the source or the device is unknown.
    """
    asked = {field: value for field, value in asdict(price).items() if value is not None}
    if not asked:
        return summarise(view)
    from autocomp.cost import Workload
    from autocomp.search.reprice import reprice
    from autocomp.search.run import load_study_config

    config = load_study_config(view.study_dir)
    budget, own = config.budget, config.objective.cost
    cost = price.cost or (own if own in TIMES else DECODE_MS)
    times = price.times or (MODELLED if price.cost_device else budget.times)
    if cost not in LIMITS or times not in SOURCES[1:]:
        raise ConfigError(
            f"cannot price by {cost}, {times}: costs are {', '.join(LIMITS)}, times "
            f"{', '.join(SOURCES[1:])}."
        )
    work = Workload(
        price.context or budget.context,
        price.batch or budget.batch,
        price.cost_device or budget.device,
        times,
    )
    info = summarise(view, reprice(view.study, config, cost, work))
    of: dict[str, object] = {"context": work.context, "batch": work.batch}
    if cost in TIMES:
        of |= {"device": work.device, "times": work.times}
    return replace(info, settings={**info.settings, **of})


def write_numbers(info: FrontInfo, beside: Path) -> list[Path]:
    """Write the figures' numbers as CSV and JSON beside a picture; return the two paths."""
    written = []
    for suffix, text in ((".csv", info.to_csv()), (".json", info.to_json_text())):
        path = beside.with_suffix(suffix)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        written.append(path)
    return written


def best_bits(view: StudyView, info: FrontInfo) -> BitsMap | None:
    """Return the bits of the best plan: finished, else least loss; ``None`` without its model."""
    ranked = sorted(info.points, key=lambda p: p.loss)
    chosen = info.best if info.best is not None else ranked[0].trial if ranked else None
    if chosen is None:
        return None
    from autocomp.models import sketch_of
    from autocomp.search.stored import Prepared

    plan = next(record.plan for record in view.study.records() if record.number == chosen)
    try:
        known = Prepared.of(view.study, plan.variant)
        shapes = None if known is None else known.shapes
        return bits_map(sketch_of(str(view.setting("model")), shapes), plan)
    except (AutocompError, OSError) as error:
        say(f"the map of bits is left out: {error}")
        return None
