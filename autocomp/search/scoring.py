"""One streamed pass that compresses every option of every site and predicts its KL."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from autocomp.calibrate.stream import EndStatistics
from autocomp.core.errors import StoreError
from autocomp.core.progress import Progress
from autocomp.core.sketch import Site
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.env import cache_dir
from autocomp.models.device import bf16_products
from autocomp.search.clock import Clock
from autocomp.search.scores import LINEAR_SCORES, embedding_score, head_score, output_score
from autocomp.search.workbench import Workbench, method_version

SCORE_VERSION = 1


@dataclass(frozen=True)
class ScoreTable:
    """Predicted KL, nats a token.

    Args:
        options: By site, by spec token.
        drop: By sub-block.
    """

    options: Mapping[str, Mapping[str, float]]
    drop: Mapping[str, float]


def _table_path(bench: Workbench, lists: Mapping[str, Sequence[LayerSpec]], score: str) -> Path:
    """Return where the scores of these options live in the cache."""
    described = {
        "version": SCORE_VERSION,
        "stats": bench.stats_digest,
        "seed": bench.config.seed,
        "score": score,
        "options": {
            name: [f"{spec.token()}:{method_version(spec)}" for spec in specs]
            for name, specs in sorted(lists.items())
        },
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "scores" / f"{digest[:32]}.json"


def _read(path: Path) -> ScoreTable | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return ScoreTable(data["options"], data["drop"])
    except (OSError, ValueError, KeyError):
        return None


def _write(path: Path, table: ScoreTable) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(
            json.dumps({"options": table.options, "drop": table.drop}), encoding="utf-8"
        )
        partial.replace(path)
    except OSError as error:
        raise StoreError(
            f"cannot write the scores to {path}: {error}. Free some space or set AUTOCOMP_CACHE "
            "to a writable folder."
        ) from error


def score_options(
    bench: Workbench,
    lists: Mapping[str, Sequence[LayerSpec]],
    progress: Progress,
    clock: Clock,
    score: str = "kronecker",
) -> ScoreTable:
    """Return the predicted KL of every option; compressed weights go to the layer store.

    Args:
        bench: The loaded base model.
        lists: Options by site name; sub-blocks are scored without being listed.
        progress: Told one unit a block and half-pass.
        clock: Gets the stages ``calibrate``, ``compress`` and ``score``.
        score: Name of the linear score.
    """
    path = _table_path(bench, lists, score)
    cached = _read(path)
    if cached is not None:
        progress.log(f"scores read from the cache ({path.name})")
        return cached
    stream = bench.stream(lists)
    tokens = bench.calibration.input_ids.numel()
    progress.start("calibrate", bench.sketch.num_layers, "block")
    for _ in clock.each("calibrate", stream.forward()):
        progress.advance()
    progress.finish(f"{tokens} tokens of {bench.calibration.corpus}")
    options: dict[str, dict[str, float]] = {}
    drop: dict[str, float] = {}
    caches: dict[str, dict[str, float]] = {}
    progress.start("compress and score", bench.sketch.num_layers, "block")
    for found in clock.each("calibrate", stream.backward()):
        drop |= found.drop
        caches |= found.caches
        with clock.time("compress"):
            bench.compress_options(found.stats, lists)
        with clock.time("score"):
            for name, stats in found.stats.items():
                specs = lists.get(name, ())
                options[name] = _linear_scores(bench, name, specs, stats, LINEAR_SCORES[score])
        progress.advance()
    progress.finish(f"{sum(map(len, options.values()))} compressed weights")
    end = bench.end_statistics(stream)
    for site in bench.sketch.sites:
        if site.kind in ("embedding", "head"):
            specs = lists.get(site.name, ())
            with clock.time("compress"):
                for spec in specs:
                    bench.compressed(site.name, spec)
            with clock.time("score"):
                options[site.name] = _end_scores(bench, site, specs, end)
    table = ScoreTable(options | caches, drop)
    _write(path, table)
    return table


def _linear_scores(
    bench: Workbench,
    name: str,
    specs: Sequence[LayerSpec],
    stats: Stats,
    score: Callable[[Tensor, Stats], float],
) -> dict[str, float]:
    """Return the scores of a linear's options, which the store holds."""
    weight = bench.weight(name)
    scores = {}
    for spec in specs:
        compressed = bench.compressed(name, spec, stats).to(weight.device)
        with bf16_products(bench.dtype):  # a score is right to tens of percent at best
            if spec.activation is not None:
                value = output_score(stats, weight, compressed.operands())
            else:
                value = score(compressed.to_dense() - weight, stats)
        scores[spec.token()] = value
    return scores


def _end_scores(
    bench: Workbench, site: Site, specs: Sequence[LayerSpec], end: EndStatistics
) -> dict[str, float]:
    """Return the scores of an embedding (with its tied head) or of a head of its own."""
    tied = not any(other.kind == "head" for other in bench.sketch.sites)
    weight = bench.weight(site.name)
    scores = {}
    for spec in specs:
        dense = bench.compressed(site.name, spec).to_dense().to(weight.device)
        value = 0.0
        if site.kind == "embedding":
            value += embedding_score(dense - weight, end)
        if site.kind == "head" or tied:
            value += head_score(weight, dense, end)
        scores[spec.token()] = value
    return scores
