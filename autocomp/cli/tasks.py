"""``autocomp tasks``: local files as tasks for lm-eval's own command line."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Option

from autocomp.cli.console import progress, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output
from autocomp.core.errors import ConfigError


def tasks(
    data_dir: Annotated[Path, Option(help="Folder that holds the datasets' files.")],
    out: Annotated[Path, Option(help="Folder to write.")],
    output: Output,
    chosen: Annotated[
        str, Option("--tasks", help="Tasks and suites, separated by commas.")
    ] = "zero-shot",
    force: Annotated[bool, Option("--force", help="Replace a folder that is not empty.")] = False,
) -> None:
    """Write tasks of lm-eval that read local files, and the lm_eval command that runs them.

    The suite zero-shot is lambada_openai, piqa, arc_easy, arc_challenge, hellaswag, winogrande,
    openbookqa and boolq; wikitext is one more task.

    - `autocomp tasks --data-dir data --out local-tasks`
    - `autocomp tasks --data-dir data --out local-tasks --tasks piqa,wikitext --json`
    """
    from autocomp.evaluate.tasks import write_tasks
    from autocomp.layers.folder import is_occupied

    if is_occupied(out) and not force:
        raise ConfigError(f"{out} is not an empty folder: choose another --out or add --force.")
    quiet_libraries()
    with progress(quiet=output.quiet) as listener:
        listener.start(f"writing {out}")
        written = write_tasks(data_dir, out, chosen)
        listener.finish()
    names = ",".join(task.name for task in written)
    command = (
        "HF_HUB_OFFLINE=1 lm_eval --model hf --model_args pretrained=MODEL,dtype=float32 "
        f"--tasks {names} --include_path {shlex.quote(str(out.absolute()))} --batch_size 1"
    )
    if output.json:
        rows = [asdict(task) for task in written]
        show_json({"out": str(out), "tasks": rows, "command": command})
        return
    table = Table(title=str(out), title_justify="left")
    table.add_column("task")
    table.add_column("examples", justify="right")
    table.add_column("read from")
    for task in written:
        table.add_row(task.name, str(task.examples), str(task.source))
    show(table, f"next: {command}")
