"""From a configuration to a priced problem: option lists, budgets and their knapsack."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from optuna.distributions import IntDistribution

from autocomp.config import StudyConfig
from autocomp.core.errors import InfeasibleError
from autocomp.core.plan import Plan
from autocomp.core.registry import SPACES, load_object
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import fixed_bytes, site_bytes, weight_bytes
from autocomp.cost.memory import attentions, cache_bytes, peak_memory_bytes
from autocomp.models import sketch_of
from autocomp.search.context import Space
from autocomp.search.knapsack import Bypass, Group, Problem, Solution, smallest
from autocomp.search.scoring import ScoreTable


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
        sketch: The model's architecture.
        lists: Options by group name, smallest first.
    """

    config: StudyConfig
    sketch: Sketch
    lists: Mapping[str, tuple[LayerSpec, ...]]

    @classmethod
    def of(cls, config: StudyConfig) -> "Setup":
        """Read the architecture and build the option lists.

        Raises:
            ConfigError: If the model or an option is unknown.
            PlanError: If an option does not fit a layer.
        """
        sketch = sketch_of(config.model)
        chosen = config.space
        lists = SPACES[chosen.name].candidates(
            sketch, linear=chosen.linear, embedding=chosen.embedding, bypass=chosen.bypass
        )
        return cls(config, sketch, lists)

    def with_lists(self, lists: Mapping[str, tuple[LayerSpec, ...]]) -> "Setup":
        """Return the same model and budget over other lists, such as those of a stored study."""
        return Setup(self.config, self.sketch, lists)

    @cached_property
    def space(self) -> IntegerSpace:
        """The integer parameters over the lists."""
        space: IntegerSpace = load_object("autocomp.search_spaces._options:OptionSpace")(
            self.sketch, self.lists
        )
        return space

    @cached_property
    def weight_groups(self) -> tuple[str, ...]:
        """Names of the groups that hold weights, in model order."""
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
        return Plan({site.name: DENSE for site in self.sketch.sites})

    @cached_property
    def memory_overhead(self) -> int:
        """Peak memory beyond the weight file with every sub-block kept, bytes."""
        budget = self.config.budget
        peak = peak_memory_bytes(
            self.sketch, self.dense_plan, context=budget.context, batch=budget.batch
        )
        return peak - weight_bytes(self.sketch, self.dense_plan)

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

    @property
    def memory_only(self) -> bool:
        """Whether peak memory is the only limit."""
        return self.config.budget.max_bytes is None and self.config.budget.max_memory is not None

    @cached_property
    def budget(self) -> int:
        """The knapsack's budget in bytes of weights.

        Peak memory is weights plus the cache and the activations at a context. As the only limit
        it becomes a weight budget in which a dropped attention gives back its cache; beside
        ``max_bytes`` the smaller of the two applies. Every plan is checked against the exact
        limits as well.
        """
        budget = self.config.budget
        limits = [self.largest_bytes]
        if budget.max_bytes is not None:
            limits.append(budget.max_bytes)
        if budget.max_memory is not None:
            limits.append(budget.max_memory - self.memory_overhead)
        return min(limits)

    def spent(self, plan: Plan) -> int:
        """Return what a plan takes of :attr:`budget`, bytes."""
        bytes_used = weight_bytes(self.sketch, plan)
        if self.memory_only:
            bytes_used -= sum(
                self._cache_of(name) for name in self.droppable if plan[name] != DENSE
            )
        return bytes_used

    def _cache_of(self, subblock: str) -> int:
        if all(site.name != subblock for site in attentions(self.sketch)):
            return 0
        budget = self.config.budget
        return cache_bytes(self.sketch, context=budget.context, batch=budget.batch)

    def problem(self, scores: ScoreTable | None) -> Problem:
        """Return the knapsack; without scores every option costs the same KL, nothing."""
        index = {name: row for row, name in enumerate(self.weight_groups)}
        sites = {group[0]: group for group in self.sketch.groups}
        groups = []
        for name in self.weight_groups:
            cost = [
                sum(site_bytes(self.sketch, site, spec) for site in sites[name])
                for spec in self.lists[name]
            ]
            score = np.zeros(len(cost))
            if scores is not None:
                score += [
                    sum(scores.options[site][spec.token()] for site in sites[name])
                    for spec in self.lists[name]
                ]
            groups.append(Group(name, np.asarray(cost, dtype=np.int64), score))
        bypasses, kept = [], 0
        for name in self.droppable:
            inside = site_bytes(self.sketch, name, DENSE)
            kept += inside
            members = tuple(index[site] for site in self.sketch[name].members)
            saved = inside + (self._cache_of(name) if self.memory_only else 0)
            lost = 0.0 if scores is None else scores.drop[name]
            bypasses.append(Bypass(name, members, -saved, lost))
        never = sum(
            site_bytes(self.sketch, site.name, DENSE)
            for site in self.sketch.subblocks()
            if site.name not in self.lists
        )
        fixed = fixed_bytes(self.sketch) + kept + never
        return Problem(tuple(groups), tuple(bypasses), fixed)

    def plan_of(self, solution: Solution) -> Plan:
        """Return the plan of a knapsack solution."""
        params = dict(zip(self.weight_groups, map(int, solution.choice), strict=True))
        params |= dict(zip(self.droppable, map(int, solution.bypassed), strict=True))
        return self.space.decode(params)

    def check_feasible(self) -> None:
        """Refuse a budget below the smallest reachable size.

        Raises:
            InfeasibleError: The message names that size.
        """
        plan = self.plan_of(smallest(self.problem(None)))
        costs = self.costs(plan)
        for name, limit in self.limits.items():
            if costs[name] > limit:
                option = "--max-bytes" if name == "weight_bytes" else "--max-memory"
                raise InfeasibleError(
                    f"{option} {format_bytes(limit)} cannot be reached: the smallest plan of the "
                    f"space {self.config.space.name!r} for {self.config.model} needs "
                    f"{format_bytes(costs[name])} ({costs[name]} bytes). Raise the budget or add "
                    "smaller options to the space."
                )


def family(plan: Plan) -> str:
    """Return which kinds of compression a plan uses beside plain quantization.

    ``quantized``, or any of ``bypassed``, ``low-rank`` and ``sparse`` joined with ``+``.
    """
    used = set()
    for spec in plan.layers.values():
        for name, part in (
            ("bypassed", spec.structure),
            ("low-rank", spec.factor),
            ("sparse", spec.mask),
        ):
            if part is not None:
                used.add(name)
    return "+".join(sorted(used)) or "quantized"
