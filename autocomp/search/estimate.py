"""What a search will take, from shapes and a second of arithmetic, before any work.

Time is counted in multiply-accumulates over the measured speed of two matrix products, one in the
body's dtype and one in fp32, plus the measured speed of the small steps that a column solver
makes. A variant counts as much as the base, which is never smaller; how small its plans get is
known when it has been prepared.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from autocomp.config import StudyConfig
from autocomp.core.cost import WEIGHT_BYTES
from autocomp.core.finish import finish_spec, two_streams
from autocomp.core.metric import TASK_ERROR
from autocomp.core.registry import METHODS, load_object
from autocomp.core.sketch import Site, Sketch
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Needs
from autocomp.models.device import body_dtype, resolve_device
from autocomp.search.setup import Setup

needs = load_object("autocomp.methods.compose:needs")

OVERHEAD = 1.4
SOLVER_STEP_OPERATIONS = 12
PASS_OPERATIONS = 350
"""Time of going over a weight once, rounding it and looking at the error, in multiply-adds."""
CLUSTER_OPERATIONS = 1300
"""Time of a step of exact k-means, of which a row takes clusters · n log₂ n, in multiply-adds."""
EVALUATED_SHARE = 0.6
EXAMPLE_TOKENS = 100
"""Tokens of an example with all its choices: about the mean of the zero-shot tasks."""


@dataclass(frozen=True)
class CostRange:
    """What a cost may be, in the unit of its name.

    Args:
        smallest: Of all plans of the base.
        largest: Of all plans of the base.
        limit: The most that is allowed; ``None`` without a limit.
        source: Where it comes from (``autocomp.core.cost.SOURCES``).
    """

    smallest: float
    largest: float
    limit: float | None
    source: str


@dataclass(frozen=True)
class Estimate:
    """Predicted effort and the reachable range.

    Args:
        smallest_bytes: Smallest weight file of the base's plans.
        largest_bytes: Largest weight file of the base's plans.
        costs: Every cost that is limited or minimised, by name.
        space_size_log10: Decimal logarithm of the number of plans, over all variants.
        groups: Decisions.
        options: Compressed weights that the layer store will hold.
        minutes: Predicted minutes by stage, ``total`` included.
        disk_bytes: Predicted size of the layer store.
        ram_bytes: Predicted peak memory of the search.
    """

    smallest_bytes: int
    largest_bytes: int
    costs: dict[str, CostRange]
    space_size_log10: float
    groups: int
    options: int
    minutes: dict[str, float]
    disk_bytes: int
    ram_bytes: int

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Speed:
    """Multiply-accumulates a second in the body's dtype and in fp32, and solver steps a second."""

    body: float
    single: float
    steps: float


def _rate(dtype: torch.dtype, device: torch.device) -> float:
    left = torch.randn(1024, 1024, device=device).to(dtype)
    best = math.inf
    for _ in range(4):
        begun = time.perf_counter()
        (left @ left)[0, 0].item()
        best = min(best, time.perf_counter() - begun)
    return 1024**3 / best


def _measure_speed(device: torch.device) -> _Speed:
    column = torch.randn(576, device=device)
    begun = time.perf_counter()
    for _ in range(2000):
        column.mul(0.5)
    steps = 2000 / (time.perf_counter() - begun)
    return _Speed(_rate(body_dtype(device), device), _rate(torch.float32, device), steps)


def _body_macs(sketch: Sketch) -> int:
    return sum(site.shape[0] * site.shape[1] for site in sketch.sites if site.kind == "linear")


def _read_tokens(config: StudyConfig) -> tuple[int, int]:
    """Return the tokens of one full evaluation and of measuring one finished plan."""
    objective, data = config.objective, config.data
    if objective.metric != TASK_ERROR:
        return data.rungs[-1], data.heldout_tokens
    examples = objective.rungs[-1], objective.heldout_examples
    searched, held = (count * EXAMPLE_TOKENS for count in examples)
    return searched, held + data.heldout_tokens


def _solve_seconds(site: Site, spec: LayerSpec, speed: _Speed) -> float:
    """Return the seconds to compress one site once, without factorising H."""
    rows, columns = site.shape
    if spec.factor is not None:
        return 30 * min(rows, columns) ** 3 / speed.single
    if _reads_gradients(spec):
        clusters = 1 << int(spec.quantizer.bits)
        steps = rows * columns * math.log2(columns + 1) * clusters
        return CLUSTER_OPERATIONS * steps / speed.single
    parts: list[tuple[Any, Any]] = [(METHODS[part.method](), part) for part in spec.filled()]
    passes: float = sum(method.passes(part) for method, part in parts if hasattr(method, "passes"))
    seconds = PASS_OPERATIONS * max(1, passes) * rows * columns / speed.single
    if Needs.HESSIAN in needs(spec):
        seconds += columns * SOLVER_STEP_OPERATIONS / speed.steps
        seconds += rows * columns**2 / 2 / speed.single
    return seconds


def _factor_seconds(sites: Iterable[Site], speed: _Speed) -> float:
    """Return the seconds to factorise H once for each input that sites read."""
    widths = {(site.block, site.reads): site.shape[1] for site in sites}
    return sum(columns**3 for columns in widths.values()) / speed.single


def _reads_gradients(spec: LayerSpec) -> bool:
    """Return whether a spec is made from the squares of every weight's gradient."""
    return Needs.SENSITIVITY in needs(spec)


def _tuned_tokens(config: StudyConfig) -> int:
    """Return the tokens that each block runs forward and backward in a finish."""
    spec = finish_spec(config.search.finish)
    return 0 if spec is None else int(METHODS[spec.method]().tokens(spec))


def estimate(config: StudyConfig) -> Estimate:
    """Return what the search of a configuration will take.

    Raises:
        ConfigError: If the model or an option is unknown.
        PlanError: If an option does not fit a layer.
    """
    setup = Setup.of(config)
    sketch, models = setup.sketch, 1 + len(config.space.variants)
    speed = _measure_speed(resolve_device(config.device))
    macs = _body_macs(sketch)
    head = sketch.vocab_size * sketch.hidden_size
    data = config.data
    moments = sum(
        site.shape[0] ** 2 + site.shape[1] ** 2 for site in sketch.sites if site.kind == "linear"
    )
    calibration = data.calibration_tokens * (5 * macs / speed.body + moments / speed.single)
    layout = load_object("autocomp.methods.compose:layout")
    store, score, disk, options, squares = 0.0, 0.0, 0, 0, 0
    lists = {
        name: specs
        for name, specs in setup.site_lists.items()
        if sketch[name].kind not in ("subblock", "cache")
    }
    solved = []
    for name, specs in lists.items():
        site = sketch[name]
        options += len(specs)
        solved += [site] if any(Needs.HESSIAN in needs(spec) for spec in specs) else []
        if any(map(_reads_gradients, specs)):
            squares += site.shape[0] * site.shape[1]
        for spec in specs:
            disk += layout(spec, site.shape, sketch.dtype).nbytes
            store += _solve_seconds(site, spec, speed)
            if site.kind == "linear":
                score += site.shape[0] * site.shape[1] * sum(site.shape) / speed.single
    factors = _factor_seconds(solved, speed)
    store += factors
    calibration += data.calibration_tokens * squares / speed.single
    searched, held = _read_tokens(config)
    full = searched * (macs / speed.body + head / speed.single)
    heldout = held * (macs / speed.body + head / speed.single)
    compared = data.heldout_tokens + (
        data.rungs[-1] if config.objective.metric != TASK_ERROR else 0
    )
    reference = compared * (macs + 2 * head) / speed.single
    finish = data.calibration_tokens * (6 * macs / speed.body + moments / 2 / speed.single)
    finish += 3 * _tuned_tokens(config) * macs / speed.body
    if two_streams(config.search.finish):
        finish += data.calibration_tokens * (macs / speed.body + moments / 2 / speed.single)
    finalists = config.search.finalists * config.search.finish_budgets + 2
    per_finalist = (
        finish
        + heldout
        + factors
        + sum(
            _solve_seconds(sketch[name], specs[-2 if len(specs) > 1 else 0], speed)
            for name, specs in lists.items()
        )
    )
    seconds = {
        "calibration": models * calibration,
        "reference": reference,
        "layer store": models * store,
        "score": models * score,
        "one full evaluation": full,
        "trials": config.search.trials * full * EVALUATED_SHARE,
        "finish": finalists * per_finalist,
    }
    if models > 1:
        prepare = data.calibration_tokens * macs / speed.body + full
        seconds["prepare variants"] = (models - 1) * prepare
    minutes = {name: round(OVERHEAD * value / 60, 2) for name, value in seconds.items()}
    minutes["total"] = round(
        sum(value for name, value in minutes.items() if name != "one full evaluation"), 2
    )
    costs = {
        name: CostRange(*setup.reach(name), setup.limits.get(name), model.source)
        for name, model in setup.cost_models.items()
    }
    total = (macs + head) * 4
    activations = data.calibration_tokens * sketch.hidden_size * 2 * (sketch.num_layers + 8)
    return Estimate(
        smallest_bytes=int(costs[WEIGHT_BYTES].smallest),
        largest_bytes=int(costs[WEIGHT_BYTES].largest),
        costs=costs,
        space_size_log10=setup.space.log10_size + math.log10(models),
        groups=len(setup.weight_groups) + len(setup.droppable),
        options=models * options,
        minutes=minutes,
        disk_bytes=models * disk,
        ram_bytes=int((2 + (models > 1)) * total + min(activations, 4e9) + 3e9 + 8e8),
    )
