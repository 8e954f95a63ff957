"""``autocomp eval``: perplexity, KL and task accuracy of a model from its folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from typer import Argument, Option

from autocomp.cli.console import progress, say, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output
from autocomp.core.errors import ConfigError

if TYPE_CHECKING:
    from autocomp.evaluate import Measurement


@dataclass(frozen=True)
class Text:
    """What text is read."""

    data: Annotated[
        str | None,
        Option(help="Corpus name, .txt, .raw or .jsonl; pydoc.", rich_help_panel="Text"),
    ] = None
    protocol: Annotated[
        str | None,
        Option(
            help="As papers do it: wikitext2, ptb, ptb-new, c4, c4-new.", rich_help_panel="Text"
        ),
    ] = None
    tokens: Annotated[
        int | None,
        Option(help="Tokens to read; 16384, all of a protocol.", min=2, rich_help_panel="Text"),
    ] = None
    window: Annotated[
        int | None,
        Option(help="Window length; 512, of a protocol 2048.", min=2, rich_help_panel="Text"),
    ] = None
    base: Annotated[
        str | None,
        Option(help="Also KL and agreement with this model.", rich_help_panel="Text"),
    ] = None
    save_reference: Annotated[
        Path | None,
        Option(
            help="Write what a --base needs of PATH to a .safetensors file; it is then the base.",
            rich_help_panel="Text",
        ),
    ] = None


@dataclass(frozen=True)
class Tasks:
    """What tasks are answered."""

    tasks: Annotated[
        str | None,
        Option(help="Tasks of lm-eval, with commas: piqa,boolq.", rich_help_panel="Tasks"),
    ] = None
    suite: Annotated[
        str | None, Option(help="Named tasks: zero-shot.", rich_help_panel="Tasks")
    ] = None
    limit: Annotated[
        int | None, Option(help="Examples a task; all.", min=1, rich_help_panel="Tasks")
    ] = None
    batch_size: Annotated[int, Option(help="Examples a pass.", min=1, rich_help_panel="Tasks")] = 1


def evaluate(
    path: Annotated[str, Argument(help="Native or Hugging Face folder, or a model id.")],
    text: Text,
    tasks: Tasks,
    output: Output,
    data_dir: Annotated[
        str | None, Option(help="Local files of protocols and tasks, in place of the hub.")
    ] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, Option(help="Of the body: auto, float32, bfloat16.")] = "auto",
) -> None:
    """Measure perplexity on a text, KL from a base model, and accuracy on tasks.

    - `autocomp eval best --base smollm2-135m --tokens 16384 --json`
    - `autocomp eval best --protocol wikitext2 --window 2048`
    - `autocomp eval best --suite zero-shot --data-dir tasks/ --limit 200`
    - `autocomp eval smollm2-135m --save-reference base.safetensors`, then
      `autocomp eval best --base base.safetensors`
    """
    from autocomp.evaluate import TaskRequest, TextRequest, evaluate_path, save_reference

    named = text.data, text.protocol, text.tokens, text.window
    if text.data is not None and text.protocol is not None:
        raise ConfigError("--data and --protocol both name a text; give one of them.")
    wanted = None
    if any(value is not None for value in named):
        wanted = TextRequest(
            corpus=text.data or TextRequest().corpus,
            tokens=text.tokens,
            window=text.window,
            protocol=text.protocol,
            data_dir=data_dir,
        )
    quiet_libraries()
    if text.save_reference is not None:
        out = save_reference(path, text.save_reference, wanted, device=device)
        say(f"wrote {out}; use it as --base")
        return
    names = [*(tasks.tasks or "").split(","), tasks.suite or ""]
    chosen = tuple(name.strip() for name in names if name.strip())
    asked = TaskRequest(chosen, data_dir, tasks.limit, tasks.batch_size) if chosen else None
    with progress(quiet=output.quiet) as listener:
        found = evaluate_path(
            path,
            text=wanted,
            tasks=asked,
            base=text.base,
            device=device,
            dtype=dtype,
            progress=listener,
        )
    if output.json:
        measured = [one.to_json() for one in found]
        show_json({"path": path, "base": text.base, "measurements": measured})
        return
    for one in found:
        show(_table(one))
    show(*_facts(path, found[0]))


def _table(one: "Measurement") -> Table:
    """Return the metrics of one text or task."""
    size = f"{one.data.units} windows of {one.data.window}" if one.data.window else (
        f"{one.data.units} examples"
    )  # fmt: skip
    table = Table(
        title=f"{one.data.name} {one.data.split}: {size}, {one.data.tokens} tokens",
        title_justify="left",
    )
    for heading in ("metric", "value", "± standard error"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, metric in one.metrics.items():
        error = metric.standard_error
        table.add_row(name, f"{metric.value:.4f}", "" if error is None else f"{error:.4f}")
    return table


def _facts(path: str, one: "Measurement") -> list[str]:
    """Return what the figures depend on, and the size of the model, as lines."""
    lines = [f"{path}: {one.dtype} on {one.hardware}, {one.seconds:.0f} s"]
    if one.floor_nats is not None:
        lines.append(
            f"subtracted from every KL: {one.floor_nats:.2e} nats, the base in {one.dtype} "
            "against itself in float32"
        )
    if one.efficiency is not None:
        size: dict[str, Any] = asdict(one.efficiency)
        lines.append(
            f"{size['weight_bytes']} bytes of weights, 1/{size['compression_ratio']:.2f} of the "
            f"base's {size['base_weight_bytes']}; {size['flops_per_token'] / 1e9:.3f} GFLOPs a "
            f"token at {size['context']} tokens of context, base "
            f"{size['base_flops_per_token'] / 1e9:.3f}"
        )
    return lines
