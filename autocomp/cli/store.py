"""``autocomp store``: how much the layer store holds, and making it smaller."""

from pathlib import Path
from typing import Annotated

from typer import Option

from autocomp.cli.console import show, show_json
from autocomp.cli.options import Output
from autocomp.core.units import parse_bytes
from autocomp.env import cache_dir
from autocomp.report.table import megabytes


def store(
    output: Output,
    prune: Annotated[
        str | None, Option(metavar="SIZE", help="Drop the least recently used above SIZE.")
    ] = None,
    folder: Annotated[Path | None, Option(help="Another store than the default.")] = None,
) -> None:
    """Show the layer store, or prune it. Everything in it can be rebuilt.

    - `autocomp store`
    - `autocomp store --prune 10GB`
    """
    limit = None if prune is None else parse_bytes(prune)
    from autocomp.layers.store import LayerStore

    root = folder or cache_dir() / "layers"
    layers = LayerStore(root)
    before = layers.usage()
    if limit is not None:
        layers.prune(limit)
    usage = layers.usage()
    removed = before.entries - usage.entries
    if output.json:
        show_json(
            {
                "folder": str(root),
                "entries": usage.entries,
                "bytes": usage.bytes,
                "removed": removed,
            }
        )
        return
    show(f"{root}: {usage.entries} layers, {megabytes(usage.bytes)} MB")
    if limit is not None:
        show(f"removed {removed} layers, {megabytes(before.bytes - usage.bytes)} MB")
