"""``autocomp export``: a finished plan as a folder that loads where it is served."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from autocomp.cli.console import progress, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output
from autocomp.cli.studies import choose_trial, open_view
from autocomp.core.errors import ConfigError, ExportError
from autocomp.core.registry import nearest
from autocomp.core.units import parse_bytes
from autocomp.report.table import megabytes

FORMATS = ("native", "hf")


def export(
    study: Annotated[str, Argument(help="Study directory or storage URL.")],
    out: Annotated[Path, Option(help="Folder to write.")],
    output: Output,
    trial: Annotated[int | None, Option(help="This trial.")] = None,
    best: Annotated[bool, Option("--best", help="The best finished trial.")] = False,
    knee: Annotated[bool, Option("--knee", help="Where more bytes stop paying off.")] = False,
    under: Annotated[
        str | None, Option(metavar="SIZE", help="The least loss of at most SIZE.")
    ] = None,
    form: Annotated[
        str, Option("--format", help="native (packed) or hf (dense, saves no bytes).")
    ] = "native",
    force: Annotated[bool, Option("--force", help="Replace a folder that is not empty.")] = False,
) -> None:
    """Write a model that loads in the program that serves it; reloaded and compared first.

    Give one of --trial, --best, --knee, --under. A trial that is not finished is finished first.

    - `autocomp export runs/demo --best --format native --out best`
    - `autocomp export runs/demo --under 80MB --format hf --out dense`
    """
    if form not in FORMATS:
        raise ConfigError(
            f"unknown export format {form!r}.{nearest(form, list(FORMATS))} "
            f"Known: {', '.join(FORMATS)}."
        )
    limit = None if under is None else parse_bytes(under)
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} is not an empty folder: choose another --out or add --force.")
    quiet_libraries()
    view = open_view(study)
    chosen = choose_trial(view, trial=trial, best=best, knee=knee, under=limit)
    from autocomp.export import export_model
    from autocomp.search.run import finish_trial

    with progress(quiet=output.quiet) as listener:
        done = finish_trial(view.study_dir, view.storage, chosen, listener)
        listener.start(f"exporting trial {chosen} as {form}")
        report = export_model(
            view.study_dir / done.artefact,
            out,
            format=form,
            base_model=view.setting("model"),
            force=force,
        )
        listener.finish("reloaded and compared")
    if output.json:
        show_json({"trial": chosen, **asdict(report), "finished": done.to_json()})
        return
    trained = f", trained by {done.recovery}" if done.recovery else ""
    show(
        f"wrote {out}: trial {chosen}{trained}, {form}, {megabytes(report.weight_bytes)} MB; "
        f"KL from the measured artefact {report.kl_nats:.1e} nats"
    )
    if form == "hf":
        show("hf weights are dense: this format saves no bytes; --format native is packed.")
    show(f'next: autocomp eval {out}  ·  autocomp generate {out} "Hello"')
