"""Text made by data recipes, kept call by call so that a killed run goes on where it was.

One folder of the cache holds the calls of one (model and arithmetic, recipe, version, length,
seed); each call is one file, written whole or not at all. So a larger request uses the calls of a
smaller one, and a file that cannot be read, or whose ids are not those that were written, is made
again.
"""

import hashlib
import logging
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from autocomp.core.errors import ConfigError, InfeasibleError, StoreError
from autocomp.core.method import DataRecipe, Teacher
from autocomp.core.progress import Progress, Silent
from autocomp.core.registry import METHODS
from autocomp.data.windows import Windows, windows_of
from autocomp.env import cache_dir
from autocomp.formats.io import load, save

logger = logging.getLogger(__name__)


def recipe_folder(spec: Any, teacher: Teacher, seed: int) -> Path:
    """Return the folder that holds the calls of a recipe.

    Args:
        spec: The recipe's spec.
        teacher: Who writes; its digest and length count.
        seed: Seed of every draw.
    """
    version = METHODS[spec.method].version
    parts = (teacher.digest, spec.token(), version, teacher.length, seed)
    name = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:32]
    return cache_dir() / "data" / name


def recipe_windows(
    spec: Any,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    seed: int = 0,
    max_calls: int | None = None,
    progress: Progress | None = None,
) -> Windows:
    """Return the first windows that a recipe makes; only calls that are not kept are made.

    Args:
        spec: The recipe's spec.
        teacher: Who writes; its length is the window's.
        tokenizer: The model's.
        tokens: Tokens wanted; rounded down to whole windows.
        seed: Seed of every draw.
        max_calls: Spend limit, calls of the teacher in this run.
        progress: Told one unit a window.

    Returns:
        Windows of the split ``calibration``, labelled with the recipe's token.

    Raises:
        ConfigError: If less than one window is asked for.
        InfeasibleError: If the limit is reached first; the calls made are kept.
        StoreError: If the cache cannot be written.
    """
    wanted = tokens // teacher.length
    if wanted < 1:
        raise ConfigError(
            f"{tokens} tokens in windows of {teacher.length}: at least one window is needed."
        )
    recipe: DataRecipe = METHODS[spec.method]()
    folder = recipe_folder(spec, teacher, seed)
    listener = progress or Silent()
    listener.start(f"text by {spec.token()}", wanted, "window")
    made: list[Tensor] = []
    held = spent = 0
    for index in count():
        path = folder / f"{index:06d}.safetensors"
        ids = _read(path, teacher.length)
        if ids is None:
            if spent == max_calls:
                raise InfeasibleError(
                    f"{spec.token()}: {held * teacher.length} of {wanted * teacher.length} tokens "
                    f"after the {max_calls} calls that this run may make. They are kept in "
                    f"{folder}: run it again to go on, raise the limit, or ask for fewer tokens."
                )
            ids = recipe.call(spec, teacher, index, seed)
            _write(path, ids)
            spent += 1
        made.append(ids)
        listener.advance(min(len(ids), wanted - held))
        held += len(ids)
        if held >= wanted:
            break
    listener.finish(f"{spent} calls made, {len(made) - spent} kept ones used")
    return windows_of(torch.cat(made)[:wanted], tokenizer, spec.token(), "calibration")


def _read(path: Path, length: int) -> Tensor | None:
    """Return the ids of a call, (sequences, length); ``None`` if absent or damaged."""
    if not path.exists():
        return None
    try:
        tensors, metadata = load(path)
    except StoreError as error:
        logger.warning("%s", error)
        return None
    ids = tensors.get("ids")
    if ids is None or ids.shape[1:] != (length,) or metadata.get("sha256") != _digest(ids):
        logger.warning("%s does not hold the ids that were written; making them again", path)
        return None
    return ids


def _write(path: Path, ids: Tensor) -> None:
    """Write the ids of a call with their digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, {"ids": ids}, {"sha256": _digest(ids)})


def _digest(ids: Tensor) -> str:
    """Return the sha256 of token ids, hexadecimal."""
    return hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()
