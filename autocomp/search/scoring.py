"""One streamed pass that compresses every option of every site and scores it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autocomp.calibrate.collect import Collect
from autocomp.calibrate.stream import BlockStatistics, EndStatistics
from autocomp.core.errors import ConfigError, StoreError
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.registry import SCORES
from autocomp.core.sketch import Site
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.env import cache_dir
from autocomp.search.allocations.base import Allocation, parse_allocation
from autocomp.search.clock import Clock
from autocomp.search.evaluation import evaluate_plan
from autocomp.search.filling import fill
from autocomp.search.objectives import Objective
from autocomp.search.scores.base import LinearSite, Lists, Score, ScoreNeeds
from autocomp.search.scores.table import Pairs, ScoreTable
from autocomp.search.workbench import Workbench, method_version, reads_gradients

__all__ = ["ScoreTable", "score_options"]

SCORE_VERSION = 2


def _table_path(
    bench: Workbench,
    lists: Lists,
    name: str,
    objective: Objective | None,
    allocations: Sequence[Allocation],
) -> Path:
    """Return where the scores of these options live in the cache."""
    score: type[Score] = SCORES[name]
    described = {
        "version": SCORE_VERSION,
        "stats": bench.stats_digest,
        "seed": bench.config.seed,
        "score": f"{name}@{score.version}",
        "options": {
            site: sorted(f"{spec.token()}:{method_version(spec)}" for spec in specs)
            for site, specs in sorted(lists.items())
        },
    }
    if objective is not None and ScoreNeeds.OBJECTIVE in score.needs:
        described["objective"] = [objective.name, objective.digest, objective.ladder[0]]
    if allocations:
        described["allocations"] = [f"{a.token()}@{a.version}" for a in allocations]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "scores" / f"{name}-{digest[:32]}.json"


def _read(path: Path) -> ScoreTable | None:
    try:
        return ScoreTable.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        return None


def _write(path: Path, table: ScoreTable) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(table.to_json()), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StoreError(
            f"cannot write the scores to {path}: {error}. Free some space or set AUTOCOMP_CACHE "
            "to a writable folder."
        ) from error


def score_options(
    bench: Workbench,
    lists: Lists,
    progress: Progress,
    clock: Clock,
    score: str = "kronecker",
    objective: Objective | None = None,
    allocations: Sequence[str] = (),
) -> ScoreTable:
    """Return what every option would cost; compressed weights go to the layer store.

    Args:
        bench: The loaded base model.
        lists: Options by site name; sub-blocks are scored without being listed.
        progress: Told one unit a block and half-pass, and one a measured option.
        clock: Gets the stages ``calibrate``, ``compress``, ``score`` and ``measure options``.
        score: Name of the score.
        objective: What is measured, for a score that needs it.
        allocations: Tokens of the allocations that read the pass too.

    Raises:
        ConfigError: If a name is unknown, or needs an objective and there is none.
    """
    chosen: Score = SCORES[score]()
    if ScoreNeeds.OBJECTIVE in chosen.needs and objective is None:
        raise ConfigError(f"the score {score!r} measures plans; give it an objective.")
    readers = [parse_allocation(token) for token in allocations]
    path = _table_path(bench, lists, score, objective, readers)
    cached = _read(path)
    if cached is not None:
        progress.log(f"scores read from the cache ({path.name})")
        return cached
    table = _streamed(bench, lists, progress, clock, chosen, readers)
    table = replace(table, score=score, in_nats=chosen.in_nats)
    if objective is not None and ScoreNeeds.OBJECTIVE in chosen.needs:
        with clock.time("measure options"):
            table = _measured(bench, lists, progress, chosen, table, objective)
    _write(path, table)
    return table


def _streamed(
    bench: Workbench,
    lists: Lists,
    progress: Progress,
    clock: Clock,
    score: Score,
    readers: Sequence[Allocation],
) -> ScoreTable:
    """Return the values of one streamed pass."""
    collect = Collect(
        per_token=score.per_token,
        gradients=ScoreNeeds.GRADIENTS in score.needs or any(r.gradients for r in readers),
        sinks=ScoreNeeds.SINKS in score.needs,
        sensitivity=any(
            map(reads_gradients, {spec for specs in lists.values() for spec in specs})
        ),
    )
    stream = bench.stream(lists, collect)
    tokens = bench.calibration.input_ids.numel()
    progress.start("calibrate", bench.sketch.num_layers, "block")
    for _ in clock.each("calibrate", stream.forward()):
        progress.advance()
    progress.finish(f"{tokens} tokens of {bench.calibration.corpus}")
    found = _Found(signals={reader.token(): {} for reader in readers})
    progress.start("compress and score", bench.sketch.num_layers, "block")
    for block in clock.each("calibrate", stream.backward()):
        with clock.time("compress"):
            fill(bench, block.stats, lists)
        with clock.time("score"):
            _score_linears(bench, lists, score, block, found)
            _score_subblocks(bench, score, block, found)
            linears = {name: _site(bench, block, name) for name in block.stats}
            for reader in readers:
                found.signals[reader.token()].update(reader.read(linears))
        progress.advance()
    progress.finish(f"{sum(map(len, found.options.values()))} compressed weights")
    end = bench.end_statistics(stream)
    for site in bench.sketch.sites:
        if site.kind in ("embedding", "head"):
            specs = lists.get(site.name, ())
            with clock.time("compress"):
                for spec in specs:
                    bench.compressed(site.name, spec)
            with clock.time("score"):
                found.options[site.name] = _end_scores(bench, site, specs, end, score)
    return ScoreTable(found.options, found.drop, found.pairs, signals=found.signals)


@dataclass
class _Found:
    """What the pass has found so far."""

    options: dict[str, dict[str, float]] = field(default_factory=dict)
    drop: dict[str, float] = field(default_factory=dict)
    pairs: dict[str, Pairs] = field(default_factory=dict)
    signals: dict[str, dict[str, float]] = field(default_factory=dict)


def _site(bench: Workbench, block: BlockStatistics, name: str) -> LinearSite:
    """Return a linear as scores and allocations see it."""
    return LinearSite(bench.weight(name), block.stats[name], block.sinks.get(name), bench.dtype)


def _score_linears(
    bench: Workbench, lists: Lists, score: Score, block: BlockStatistics, found: _Found
) -> None:
    """Score the options of a block's linears, which the store holds."""
    for name, stats in block.stats.items():
        site = _site(bench, block, name)
        specs = lists.get(name, ())
        weights = {spec: bench.compressed(name, spec, stats).to(bench.device) for spec in specs}
        plain = [spec for spec in specs if spec.activation is None]
        values = {
            spec: score.rounded(site, weight)
            for spec, weight in weights.items()
            if spec.activation is not None
        }
        if plain:
            changes = site.weight.new_empty(len(plain), *site.weight.shape)
            for row, spec in enumerate(plain):
                changes[row] = weights[spec].to_dense() - site.weight
            pairs = score.pairs(site, changes)
            values |= dict(zip(plain, score.weights(site, changes, pairs).tolist(), strict=True))
            tokens = [spec.token() for spec in plain]
            found.pairs[name] = {
                token: dict(zip(tokens, row, strict=True))
                for token, row in zip(tokens, pairs.tolist(), strict=True)
            }
        found.options[name] = {spec.token(): max(0.0, values[spec]) for spec in specs}


def _score_subblocks(
    bench: Workbench, score: Score, block: BlockStatistics, found: _Found
) -> None:
    """Put a block's bypasses and caches on the scale of the score."""
    sketch = bench.sketch
    for name, lost in block.drop.items():
        linears = (m for m in sketch[name].members if sketch[m].kind == "linear")
        scale = score.scale(map(bench.weight, linears), lost)
        found.drop[name] = scale * lost
        for site, values in block.caches.items():
            if sketch.owner[site] == name:
                found.options[site] = {token: scale * lost for token, lost in values.items()}


def _end_scores(
    bench: Workbench, site: Site, specs: Sequence[LayerSpec], end: EndStatistics, score: Score
) -> dict[str, float]:
    """Return the values of an embedding (with its tied head) or of a head of its own."""
    tied = not any(other.kind == "head" for other in bench.sketch.sites)
    weight = bench.weight(site.name)
    values = {}
    for spec in specs:
        dense = bench.compressed(site.name, spec).to_dense().to(weight.device)
        value = 0.0
        if site.kind == "embedding":
            value += score.embedding(dense - weight, end)
        if site.kind == "head" or tied:
            value += score.head(weight, dense, end)
        values[spec.token()] = max(0.0, value)
    return values


def _measured(
    bench: Workbench,
    lists: Lists,
    progress: Progress,
    score: Score,
    table: ScoreTable,
    objective: Objective,
) -> ScoreTable:
    """Return the table with what a score measures, one site at a time, in model order."""
    tokens = 0

    def loss(layers: Mapping[str, LayerSpec]) -> float:
        nonlocal tokens
        plan = Plan(dict(layers), variant=bench.variant)
        outcome = evaluate_plan(objective, bench, plan, stop=lambda _: True)
        tokens += outcome.tokens
        return outcome.loss

    def excess(site: str, spec: LayerSpec) -> float:
        value = loss({**layers, site: spec}) - dense
        progress.advance()
        return value

    layers = {site.name: DENSE for site in bench.sketch.sites}
    ordered = {name: lists[name] for name in layers if name in lists}
    count = sum(spec != DENSE for specs in ordered.values() for spec in specs)
    progress.start("measure options", count, "option")
    dense = loss(layers)
    revised = score.revised(table, ordered, excess)
    progress.finish(f"{tokens} tokens")
    return replace(revised, tokens=tokens)
