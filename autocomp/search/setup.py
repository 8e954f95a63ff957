"""From a configuration to a priced problem: option lists, budgets and their knapsack."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from optuna.distributions import IntDistribution

from autocomp.config import StudyConfig
from autocomp.core.errors import ConfigError, InfeasibleError
from autocomp.core.plan import Plan
from autocomp.core.registry import METHODS, SPACES, load_object
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.core.variant import BASE
from autocomp.cost.bytes import fixed_bytes, site_bytes, weight_bytes
from autocomp.cost.memory import cache_bytes, peak_memory_bytes, plan_cache_bytes
from autocomp.models import sketch_of
from autocomp.models.surgeon import Shapes
from autocomp.search.context import KIND_OF_SLOT, Space
from autocomp.search.knapsack import Bypass, Group, Problem, Solution, smallest
from autocomp.search.scoring import ScoreTable

logger = logging.getLogger(__name__)


def format_bytes(size: float) -> str:
    """Return a size in decimal units: ``79.8 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


class IntegerSpace(Space, Protocol):
    """What the study needs of an option space besides what proposals read."""

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of plans."""

    def distributions(self) -> dict[str, IntDistribution]:
        """Return the range of every parameter, by group name."""


@dataclass(frozen=True)
class Setup:
    """A model's search space with what everything costs, before any weight is read.

    Args:
        config: The study's configuration.
        sketch: The architecture of the model, or of a variant of it.
        lists: Options by group name, smallest first.
        variant: The variant's token.
        loss: The objective of the uncompressed variant; as a KL to the base it is 0 for the base.
    """

    config: StudyConfig
    sketch: Sketch
    lists: Mapping[str, tuple[LayerSpec, ...]]
    variant: str = BASE
    loss: float = 0.0

    @classmethod
    def of(
        cls,
        config: StudyConfig,
        variant: str = BASE,
        shapes: Shapes | None = None,
        loss: float = 0.0,
    ) -> "Setup":
        """Read the architecture and build the option lists.

        Args:
            config: The study's configuration.
            variant: The variant's token.
            shapes: Shapes of its MLPs.
            loss: The objective before anything is compressed.

        Raises:
            ConfigError: If the model or an option is unknown.
            ConfigError: If a cache option would store nothing of a window, and so cost nothing.
            PlanError: If an option does not fit a layer.
        """
        sketch = sketch_of(config.model, shapes)
        chosen = config.space
        lists = SPACES[chosen.name].candidates(
            sketch,
            linear=chosen.linear,
            embedding=chosen.embedding,
            bypass=chosen.bypass,
            cache=chosen.cache if chosen.cache or config.budget.memory_only else (),
        )
        lists = _shown_in(config.data.window, sketch, lists, given=bool(chosen.cache))
        return cls(config, sketch, lists, variant, loss)

    def with_lists(self, lists: Mapping[str, tuple[LayerSpec, ...]]) -> "Setup":
        """Return the same model and budget over other lists, such as those of a stored study."""
        return replace(self, lists=lists)

    @cached_property
    def space(self) -> IntegerSpace:
        """The integer parameters over the lists."""
        space: IntegerSpace = load_object("autocomp.search_spaces._options:OptionSpace")(
            self.sketch, self.lists
        )
        if variants := self.config.space.variants:
            wrap = load_object("autocomp.search_spaces._variants:VariantSpace")
            space = wrap(space, (BASE, *variants), self.variant)
        return space

    @property
    def name(self) -> str:
        """The model, with its variant, for messages."""
        model = self.config.model
        return model if self.variant == BASE else f"{model} ({self.variant})"

    @cached_property
    def weight_groups(self) -> tuple[str, ...]:
        """Names of the groups that hold weights or a cache, in model order."""
        return tuple(
            group[0]
            for group in self.sketch.groups
            if self.sketch[group[0]].kind != "subblock" and group[0] in self.lists
        )

    @cached_property
    def droppable(self) -> tuple[str, ...]:
        """Names of the sub-blocks that may be bypassed, in model order."""
        return tuple(site.name for site in self.sketch.subblocks() if site.name in self.lists)

    @cached_property
    def dense_plan(self) -> Plan:
        """The plan that changes nothing."""
        return Plan({site.name: DENSE for site in self.sketch.sites}, variant=self.variant)

    @cached_property
    def memory_overhead(self) -> int:
        """Peak memory beyond the weight file and the cache, bytes; the same for every plan."""
        budget, plan = self.config.budget, self.dense_plan
        peak = peak_memory_bytes(self.sketch, plan, context=budget.context, batch=budget.batch)
        return peak - weight_bytes(self.sketch, plan) - self._caches(plan)

    def _caches(self, plan: Plan) -> int:
        """Return the bytes of a plan's keys and values at the budget's context and batch."""
        budget = self.config.budget
        return plan_cache_bytes(self.sketch, plan, context=budget.context, batch=budget.batch)

    def costs(self, plan: Plan) -> dict[str, int]:
        """Return the exact costs of a plan in bytes, by name."""
        budget = self.config.budget
        found = {"weight_bytes": weight_bytes(self.sketch, plan)}
        if budget.max_memory is not None:
            found["peak_memory_bytes"] = peak_memory_bytes(
                self.sketch, plan, context=budget.context, batch=budget.batch
            )
        return found

    @cached_property
    def limits(self) -> dict[str, int]:
        """Upper limits by cost name."""
        budget = self.config.budget
        found = {}
        if budget.max_bytes is not None:
            found["weight_bytes"] = budget.max_bytes
        if budget.max_memory is not None:
            found["peak_memory_bytes"] = budget.max_memory
        return found

    def violation(self, plan: Plan) -> dict[str, float]:
        """Return cost minus limit by name; positive breaks the budget."""
        costs = self.costs(plan)
        return {name: float(costs[name] - limit) for name, limit in self.limits.items()}

    @cached_property
    def largest_bytes(self) -> int:
        """Bytes of the largest plan of the space."""
        problem = self.problem(None)
        return problem.fixed_cost + sum(int(group.cost.max()) for group in problem.groups)

    @cached_property
    def smallest_bytes(self) -> int:
        """Bytes of the smallest plan of the space."""
        return int(smallest(self.problem(None)).cost)

    @cached_property
    def budget(self) -> int:
        """The knapsack's budget in bytes of weights.

        Peak memory is weights plus the cache and the activations at a context. As the only limit
        it becomes a budget of weights and caches together. Beside ``max_bytes`` it becomes a
        weight budget with every cache at full precision, and the smaller of the two applies.
        Every plan is checked against the exact limits as well.
        """
        budget = self.config.budget
        limits = [self.largest_bytes]
        if budget.max_bytes is not None:
            limits.append(budget.max_bytes)
        if budget.max_memory is not None:
            cache = 0 if budget.memory_only else self._caches(self.dense_plan)
            limits.append(budget.max_memory - self.memory_overhead - cache)
        return min(limits)

    def spent(self, plan: Plan) -> int:
        """Return what a plan takes of :attr:`budget`, bytes."""
        cache = self._caches(plan) if self.config.budget.memory_only else 0
        return weight_bytes(self.sketch, plan) + cache

    def _cost(self, site: str, spec: LayerSpec) -> int:
        """Return an upper bound of what an option of one site takes of :attr:`budget`, bytes."""
        budget = self.config.budget
        if self.sketch[site].kind != "cache":
            return site_bytes(self.sketch, site, spec)
        if not budget.memory_only:
            return 0
        return cache_bytes(self.sketch, site, spec, context=budget.context, batch=budget.batch)

    def problem(self, scores: ScoreTable | None) -> Problem:
        """Return the knapsack; without scores every option costs the same KL, nothing."""
        index = {name: row for row, name in enumerate(self.weight_groups)}
        sites = {group[0]: group for group in self.sketch.groups}
        groups = []
        for name in self.weight_groups:
            cost = [
                sum(self._cost(site, spec) for site in sites[name]) for spec in self.lists[name]
            ]
            score = np.zeros(len(cost))
            if scores is not None:
                score += [
                    sum(scores.options[site][spec.token()] for site in sites[name])
                    for spec in self.lists[name]
                ]
            groups.append(Group(name, np.asarray(cost, dtype=np.int64), score))
        bypasses, fixed = [], fixed_bytes(self.sketch)
        for subblock in self.sketch.subblocks():
            name = subblock.name
            undecided = [site for site in subblock.members if site not in index]
            inside = sum(self._cost(site, DENSE) for site in (name, *undecided))
            fixed += inside
            if name in self.lists:
                members = tuple(index[site] for site in subblock.members if site in index)
                lost = 0.0 if scores is None else scores.drop[name]
                bypasses.append(Bypass(name, members, -inside, lost))
        return Problem(tuple(groups), tuple(bypasses), fixed, self.loss)

    def plan_of(self, solution: Solution) -> Plan:
        """Return the plan of a knapsack solution."""
        params = dict(zip(self.weight_groups, map(int, solution.choice), strict=True))
        params |= dict(zip(self.droppable, map(int, solution.bypassed), strict=True))
        return self.space.decode(params)

    def check_feasible(self) -> None:
        """Refuse a budget that cannot be reached, before any work.

        How small a variant can be is known when it has been prepared, so with variants nothing is
        refused yet.

        Raises:
            InfeasibleError: The message names the smallest reachable size.
        """
        if not self.config.space.variants:
            self.check_reach()

    def check_reach(self) -> None:
        """Refuse a budget below the smallest reachable size of this variant.

        Raises:
            InfeasibleError: The message names that size.
        """
        plan = self.plan_of(smallest(self.problem(None)))
        costs = self.costs(plan)
        for name, limit in self.limits.items():
            # The knapsack's bound lies a few bytes above the exact cost.
            needed = max(costs[name], limit + self.smallest_bytes - self.budget)
            if needed > limit:
                option = "--max-bytes" if name == "weight_bytes" else "--max-memory"
                raise InfeasibleError(
                    f"{option} {format_bytes(limit)} cannot be reached: the smallest plan of the "
                    f"space {self.config.space.name!r} for {self.name} needs "
                    f"{format_bytes(needed)} ({needed} bytes). Raise the budget or add smaller "
                    "options to the space."
                )


def _shown_in(
    window: int, sketch: Sketch, lists: Mapping[str, tuple[LayerSpec, ...]], given: bool
) -> dict[str, tuple[LayerSpec, ...]]:
    """Return the lists without cache options of which a window would not show what they lose.

    Raises:
        ConfigError: If such an option was given by the user.
    """

    def shown(spec: LayerSpec) -> bool:
        return spec == DENSE or METHODS[spec.cache.method]().stored(spec.cache, window - 1) != (
            0,
            0,
        )

    found = dict(lists)
    for site in sketch.caches():
        options = found.get(site.name, ())
        hidden = [spec.token() for spec in options if not shown(spec)]
        if hidden and given:
            raise ConfigError(
                f"{hidden[0]} stores no token of a window of {window} in few bits, so that it "
                "would seem to cost nothing. Raise data.window, or take it off space.cache."
            )
        if hidden:
            logger.warning("%s: %s left out for a window of %d", site.name, hidden, window)
            found[site.name] = tuple(filter(shown, options))
    return found


def family(plan: Plan) -> str:
    """Return which kinds of compression a plan uses beside plain quantization.

    ``quantized``, or its variant and any of the other names of ``KIND_OF_SLOT`` joined with ``+``.
    """
    used = {KIND_OF_SLOT[p.slot] for spec in plan.layers.values() for p in spec.filled()}
    variant = [] if plan.variant == BASE else [plan.variant]
    return "+".join(variant + sorted(used - {"quantized"})) or "quantized"
