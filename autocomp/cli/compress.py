"""``autocomp compress``: one method, uniformly, without a search."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from autocomp.cli.console import progress, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Budget, Output, budget_settings
from autocomp.config import load_config
from autocomp.core.errors import ConfigError, ExportError
from autocomp.core.registry import METHODS
from autocomp.core.spec import BITS
from autocomp.report.table import megabytes

GROUP_SIZE = 64


def compress(
    model: Annotated[str, Argument(help="Hugging Face id, local folder, or smollm2-135m.")],
    out: Annotated[Path, Option(help="Folder to write; must be empty or absent.")],
    budget: Budget,
    output: Output,
    spec: Annotated[
        str, Option("--method", help="Method, or a whole token: wanda-2:4+gptq-w4g64.")
    ] = "gptq",
    bits: Annotated[int, Option(help=f"One of {', '.join(map(str, BITS))}.")] = 4,
    group_size: Annotated[
        int | None, Option(help="Inputs that share a scale: 64 or the method's own; 0 for a row.")
    ] = None,
    embedding: Annotated[
        str, Option(help="Token for the embedding and head; 'dense' leaves them.")
    ] = "rtn-w8g64",
    data: Annotated[str | None, Option(help="Calibration corpus.")] = None,
    calibration: Annotated[
        str | None, Option(help="corpus, or a data recipe: selfgen-t1, mix:selfgen-t1.")
    ] = None,
    finish: Annotated[
        str | None, Option(help="What tunes the blocks: [gptaq+]signround-STEPS, gptaq or none.")
    ] = None,
) -> None:
    """Apply one method to every linear and write a native folder.

    A limit that the result would break is refused before any work, with exit code 3.

    - `autocomp compress smollm2-135m --method gptq --bits 4 --group-size 64 --out q4`
    - `autocomp compress smollm2-135m --method sparsegpt-2:4+gptq-w6g64 --out sparse`
    """
    token = uniform_token(spec, bits, group_size)
    config = load_config(
        None,
        {
            "model": model,
            "data.corpus": data,
            "data.calibration": calibration,
            "search.finish": finish,
            **budget_settings(budget),
        },
    )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty folder: choose another --out.")
    from autocomp.search.run import compress_uniform

    quiet_libraries()
    with progress(quiet=output.quiet) as listener:
        compress_uniform(
            config,
            linear=token,
            embedding=None if embedding == "dense" else embedding,
            out=out,
            progress=listener,
        )
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if output.json:
        show_json({"out": str(out), "token": token, "embedding": embedding, "weight_bytes": size})
        return
    show(
        f"wrote {out}: {token}, embedding {embedding}, {megabytes(size)} MB",
        f'next: autocomp eval {out}  ·  autocomp generate {out} "Hello"',
    )


def uniform_token(method: str, bits: int, group_size: int | None) -> str:
    """Return the token of a quantizer with these settings, or the token given whole.

    A method that is more than a quantizer's bits and groups says itself how it is used.

    Args:
        method: Name of a quantizer or of what goes in front of one, or a token.
        bits: Bits a code.
        group_size: 0 for a row; ``None`` for 64, or for the method's own where it has one. Not
            read where a method has no groups.

    Raises:
        ConfigError: If the method is unknown, or makes no codes and is given without its settings.
    """
    if "-" in method:
        return method
    found = METHODS[method]
    defaults = {field.name: field.default for field in fields(found.spec)}
    usual = getattr(found, "usual", None)
    quantizes = getattr(found.spec, "slot", "") == "quantizer" and "bits" in defaults
    if usual is None and not quantizes:
        raise ConfigError(
            f"--method {method}: not a quantizer, so --bits does not apply. Give its whole token, "
            f"such as wanda-s50+rtn-w4g64, wsvd-p60+rtn-w8g64 or lplr-p60-w8."
        )
    if group_size is None:
        group_size = 0 if defaults.get("group_size") else GROUP_SIZE
    grouped = group_size and (usual is not None or "group_size" in defaults)
    grid = f"w{bits}" + (f"g{group_size}" if grouped else "")
    token: str = (usual or f"{method}-{{grid}}").format(grid=grid, bits=bits)
    return token
