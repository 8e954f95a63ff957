"""``autocomp data``: text that a data recipe makes with a model."""

import json
import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from autocomp.cli.console import progress, say, show, show_json
from autocomp.cli.libraries import quiet_libraries
from autocomp.cli.options import Output
from autocomp.core.recipe import parse_recipe

SHOWN_CHARACTERS = 200


def data(
    model: Annotated[str, Argument(help="Hugging Face id, local folder, or smollm2-135m.")],
    output: Output,
    recipe: Annotated[str, Option(help="Token of a data recipe.")] = "selfgen-t1",
    tokens: Annotated[int, Option(help="Tokens wanted.", min=1)] = 16384,
    window: Annotated[int, Option(help="Tokens a sequence.", min=2)] = 512,
    seed: Annotated[int, Option(help="Seed of every draw.", min=0)] = 0,
    max_calls: Annotated[
        int | None, Option(help="Calls of the model that this run may make.", min=1)
    ] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[
        Path | None, Option(help="JSON lines to write, 'text' and 'ids' each; replaced.")
    ] = None,
) -> None:
    """Make text with a model, as `data.calibration` or a corpus of its own (--data FILE).

    What was made is kept: the same command goes on where an interrupted one stopped, and a
    search or compression with the same window and seed uses it.

    - `autocomp data smollm2-135m --recipe selfgen-t1 --tokens 16384 --out selfgen.jsonl`
    - `autocomp compress smollm2-135m --calibration selfgen-t1 --out q4`
    """
    spec = parse_recipe(recipe)
    from autocomp.data import recipe_folder, recipe_windows
    from autocomp.models import load
    from autocomp.models.device import resolve_device
    from autocomp.models.teacher import ModelTeacher

    quiet_libraries()
    with progress(quiet=output.quiet) as listener:
        loaded = load(model)
        teacher = ModelTeacher(loaded, resolve_device(device), window)
        found = recipe_windows(
            spec,
            teacher,
            loaded.tokenizer,
            tokens=tokens,
            seed=seed,
            max_calls=max_calls,
            progress=listener,
        )
    texts = loaded.tokenizer.batch_decode(found.input_ids, clean_up_tokenization_spaces=False)
    if out is not None:
        rows = zip(texts, found.input_ids.tolist(), strict=True)
        write_lines(out, [{"text": text, "ids": ids} for text, ids in rows])
        say(f"wrote {out}")
    folder = recipe_folder(spec, teacher, seed)
    if output.json:
        show_json(
            {
                "model": model,
                "recipe": spec.token(),
                "seed": seed,
                "window": window,
                "tokens": found.tokens,
                "text_bytes": found.text_bytes,
                "digest": found.digest,
                "folder": str(folder),
                "out": None if out is None else str(out),
                "first": texts[0],
            }
        )
        return
    show(
        f"{len(texts)} windows of {window} tokens by {spec.token()}, kept in {folder}",
        f"the first: {texts[0][:SHOWN_CHARACTERS]!r}",
    )


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """Write JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(part, path)
