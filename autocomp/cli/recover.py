"""``autocomp recover``: a finished plan trained into a better one of the same bytes."""

import shlex
from typing import Annotated

from typer import Argument, Option

from autocomp.cli.console import progress, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output
from autocomp.cli.search import command_line
from autocomp.cli.studies import choose_trial, open_view
from autocomp.core.metric import KL
from autocomp.report.table import megabytes

METHOD = "lora-r8-120"


def recover(
    study: Annotated[str, Argument(help="Study directory or storage URL.")],
    output: Output,
    trial: Annotated[int | None, Option(help="This trial.")] = None,
    best: Annotated[bool, Option("--best", help="The best finished trial.")] = False,
    method: Annotated[
        str, Option(help="What is trained, and for how many steps (autocomp ls methods).")
    ] = METHOD,
) -> None:
    """Train a plan's codes and scales with KL to the base; formats and bytes stay.

    Give --trial or --best. A trial that is not finished is finished first. The result is measured
    on held-out text like every finished trial; front, show and export take it where it is better.
    Run an interrupted command again to go on.

    - `autocomp recover runs/demo --best`
    - `autocomp recover runs/demo --trial 17 --method lora-r8-240-b2`
    """
    quiet_libraries()
    view = open_view(study)
    chosen = choose_trial(view, trial=trial, best=best)
    from autocomp.search.recover import recover_trial

    try:
        with progress(quiet=output.quiet) as listener:
            found = recover_trial(view.study_dir, view.storage, chosen, method, listener)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"Go on with the same command:\n  {command_line()}") from error
    before, after = found.before, found.after
    if output.json:
        show_json({"trial": chosen, "before": before.to_json(), "after": after.to_json()})
        return
    better = after.heldout_loss < before.heldout_loss
    kl = f"KL {before.heldout_kl_nats:.4f} → {after.heldout_kl_nats:.4f}"
    loss = f"{after.metric} {before.heldout_loss:.4f} → {after.heldout_loss:.4f}"
    shown = f"{kl} ±{after.heldout_se:.4f} nats"
    if after.metric != KL:
        shown = f"{loss} ±{after.heldout_loss_se:.4f}, {kl} nats"
    show(
        f"trial {chosen}, {after.recovery}: held-out {shown}, perplexity "
        f"{before.perplexity:.2f} → {after.perplexity:.2f}, {megabytes(after.weight_bytes)} MB "
        f"as before, {after.seconds / 60:.1f} min",
        f"next: autocomp export {shlex.quote(study)} --trial {chosen} --out DIR"
        if better
        else "it is not better, so export and front go on with the untrained model",
    )
