"""A native folder with other values in the same formats."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocomp.core.errors import PlanError
from autocomp.core.plan import Plan
from autocomp.cost.bytes import native_metadata
from autocomp.formats.base import CompressedWeight, tensor_info
from autocomp.formats.io import load, save
from autocomp.layers.folder import atomic_folder
from autocomp.layers.native import EXTRA_FILE, PLAN_FILE, WEIGHTS_FILE, read_extra
from autocomp.layers.store import content_digest


def rewrite_native(
    source: Path,
    folder: Path,
    *,
    plan: Plan,
    weights: Mapping[str, CompressedWeight],
    extra: Mapping[str, Any],
) -> None:
    """Write a native folder again with new values for some sites; atomic, of the same bytes.

    Args:
        source: A native folder; it stays as it is.
        folder: The folder to write; replaced when it exists.
        plan: The plan of the new folder.
        weights: Compressed weights by site, in the layouts of the source.
        extra: JSON values that are added to those of the source.

    Raises:
        PlanError: If a weight is not laid out as the source's.
        StoreError: If a folder cannot be read or written.
    """
    tensors, _ = load(source / WEIGHTS_FILE)
    for site, weight in weights.items():
        for local, tensor in weight.tensors.items():
            name, found = f"{site}.{local}", tensor_info(tensor)
            if name not in tensors or tensor_info(tensors[name]) != found:
                raise PlanError(f"{source} does not hold {name} as {found.dtype} {found.shape}.")
            tensors[name] = tensor
    with atomic_folder(folder) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        save(temporary / WEIGHTS_FILE, tensors, native_metadata(content_digest(tensors)))
        values = {PLAN_FILE: plan.to_json(), EXTRA_FILE: read_extra(source) | dict(extra)}
        for name, value in values.items():
            text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")
