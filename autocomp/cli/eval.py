"""``autocomp eval``: perplexity of a model on a text, and its KL from a base model."""

import dataclasses
from typing import Annotated, Any

from rich.table import Table
from typer import Argument, Option

from autocomp.cli.console import progress, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output


def evaluate(
    path: Annotated[str, Argument(help="Native or Hugging Face folder, or a model id.")],
    output: Output,
    base: Annotated[str | None, Option(help="Also the KL from this model.")] = None,
    data: Annotated[str, Option(help="Corpus name, .txt, .raw or .jsonl.")] = "pydoc",
    tokens: Annotated[int, Option(help="Held-out tokens to read.")] = 16384,
    window: Annotated[int, Option(help="Window length in tokens.")] = 512,
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measure perplexity on held-out text, and the KL from a base model.

    - `autocomp eval best`
    - `autocomp eval best --base smollm2-135m --tokens 16384 --json`
    """
    from autocomp.evaluate import evaluate_path

    quiet_libraries()
    with progress(quiet=output.quiet) as listener:
        listener.start(f"evaluating {path}")
        found = evaluate_path(
            path, corpus=data, tokens=tokens, window=window, device=device, base=base
        )
        listener.finish()
    if output.json:
        show_json({"path": path, "base": base, **_plain(found)})
        return
    table = Table(title=path, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in _plain(found).items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    show(table)


def _plain(found: Any) -> dict[str, Any]:
    return dataclasses.asdict(found) if dataclasses.is_dataclass(found) else dict(found)  # type: ignore[arg-type]
