"""The ``autocomp`` program: commands, and the documented exit code of every error.

0 done; 1 failed; 2 usage or configuration; 3 nothing feasible; 130 interrupted, state saved.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from autocomp import __version__
from autocomp.cli import (
    bench,
    check,
    compress,
    data,
    doctor,
    export,
    front,
    generate,
    ls,
    recover,
    search,
    show,
    store,
    tasks,
)
from autocomp.cli import eval as evaluate
from autocomp.cli.console import say, set_up_logging
from autocomp.cli.options import expanded
from autocomp.core.errors import AutocompError

INTERRUPTED = 130


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into one clear message on standard error and the documented exit code."""
    try:
        yield
    except AutocompError as error:
        say(f"error: {error}")
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        say(f"interrupted. {error}".rstrip())
        raise typer.Exit(INTERRUPTED) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        say(
            f"error: {error}. Free some space or choose another place: --study-dir or --out, and "
            "AUTOCOMP_CACHE for the layer store. What was measured is kept."
        )
        raise typer.Exit(1) from error


class _Group(TyperGroup):
    """A command group under :func:`exit_codes`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with exit_codes():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    name="autocomp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autocomp {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Search the joint space of bits, sparsity, rank and structure of a causal LM.

    Start with `autocomp search smollm2-135m --max-bytes 80MB --trials 60`.
    """
    set_up_logging()


COMMANDS: dict[str, Callable[..., None]] = {
    "search": search.search,
    "check": check.check,
    "front": front.front,
    "show": show.show_plan,
    "recover": recover.recover,
    "export": export.export,
    "eval": evaluate.evaluate,
    "generate": generate.generate,
    "compress": compress.compress,
    "bench": bench.bench,
    "data": data.data,
    "tasks": tasks.tasks,
    "ls": ls.ls,
    "store": store.store,
    "doctor": doctor.doctor,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(expanded(_command))


def main() -> None:
    """Run the program."""
    app()
