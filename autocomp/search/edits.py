"""Edits of a model's architecture, prepared once and kept in the cache.

An entry is named by everything that decides it: the model, the token, the method's version and
the dense statistics. One that is damaged is reported and made again.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from autocomp.calibrate.statistics import input_statistics
from autocomp.core.errors import StoreError
from autocomp.core.method import Edit
from autocomp.core.registry import METHODS
from autocomp.core.stats import Needs, Stats
from autocomp.core.variant import variant_spec
from autocomp.env import cache_dir
from autocomp.formats.io import load, save
from autocomp.layers.store import content_digest

if TYPE_CHECKING:
    from autocomp.search.workbench import Workbench

logger = logging.getLogger(__name__)

EDIT_VERSION = 1
KEPT, BIAS = "kept/", "bias/"


def edit_path(bench: "Workbench", token: str) -> Path:
    """Return where the edit of a token lies for a base model and its calibration windows."""
    method = METHODS[variant_spec(token).method]
    parts = (bench.loaded.digest, token, f"{method.spec.method}@{method.version}")
    digest = hashlib.sha256("|".join((*parts, bench.stats_digest)).encode()).hexdigest()
    return cache_dir() / "variants" / f"{digest[:32]}.safetensors"


def prepared_edit(bench: "Workbench", token: str) -> Edit:
    """Return the edit of a token, from the cache or made from the dense base's statistics.

    Args:
        bench: The base; its listener is told one unit a block when the edit has to be made.
        token: Such as ``flap-p80``.

    Raises:
        StoreError: If it cannot be written.
    """
    path = edit_path(bench, token)
    found = _read(path)
    if found is not None:
        return found
    spec = variant_spec(token)
    method = METHODS[spec.method]()
    bench.progress.start(f"prepare {token}", bench.sketch.num_layers, "block")
    stats = output_statistics(bench, method.needs)
    edit: Edit = method.edit(bench.sketch, spec, bench.weight, stats)
    bench.progress.finish()
    tensors = edit_tensors(edit)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}. Set AUTOCOMP_CACHE.") from error
    save(path, tensors, _metadata(tensors))
    return edit


def edit_tensors(edit: Edit) -> dict[str, Tensor]:
    """Return the tensors of an edit by name, as they are stored."""
    kept = {f"{KEPT}{name}": indices.cpu() for name, indices in edit.kept.items()}
    return kept | {f"{BIAS}{name}": bias.cpu() for name, bias in edit.bias.items()}


def output_statistics(bench: "Workbench", needs: frozenset[Needs]) -> Mapping[str, Stats]:
    """Return dense statistics of the inputs of every MLP's output linear, by site name."""
    bench.candidate.restore()
    walker = bench.walker()
    found = {}
    for block, batches in walker.walk():
        output = bench.layout.linears(bench.layout.mlp_name(block))[-1]
        sites = [bench.sketch[output]]
        stats = input_statistics(walker, batches, sites, digest=bench.stats_digest)[output]
        wanted = {need.value: getattr(stats, need.value) for need in needs}
        found[output] = Stats(tokens=stats.tokens, digest=stats.digest, **wanted)
        bench.progress.advance()
    return found


def _metadata(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    return {"edit_version": EDIT_VERSION, "sha256": content_digest(tensors)}


def _read(path: Path) -> Edit | None:
    """Return the edit of a file; ``None`` when there is none that can be trusted."""
    if not path.exists():
        return None
    try:
        tensors, metadata = load(path)
        if metadata != _metadata(tensors):
            raise StoreError(f"{path} does not match its checksum.")
    except StoreError as error:
        logger.warning("a damaged variant is made again: %s", error)
        path.unlink(missing_ok=True)
        return None
    return Edit(
        kept={n.removeprefix(KEPT): t for n, t in tensors.items() if n.startswith(KEPT)},
        bias={n.removeprefix(BIAS): t for n, t in tensors.items() if n.startswith(BIAS)},
    )
