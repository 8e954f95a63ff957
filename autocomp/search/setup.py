"""From a configuration to a priced problem: option lists, budgets and their knapsack."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from optuna.distributions import IntDistribution

from autocomp.config import StudyConfig
from autocomp.core.cost import EXACT, PEAK_MEMORY_BYTES, WEIGHT_BYTES, format_cost, option_of
from autocomp.core.errors import ConfigError, InfeasibleError
from autocomp.core.plan import Plan
from autocomp.core.registry import METHODS, SPACES, load_object
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.core.variant import BASE
from autocomp.cost import CostModel, Workload, cost_model
from autocomp.models import sketch_of
from autocomp.models.structure import groups as site_groups
from autocomp.models.surgeon import Shapes
from autocomp.search.context import KIND_OF_SLOT, QUANTIZED, Space
from autocomp.search.knapsack import Bypass, Group, Limit, Problem, Solution, smallest
from autocomp.search.scoring import ScoreTable

logger = logging.getLogger(__name__)

ROUNDING = 1e-3
"""Ticks by which a limit that is no whole number of them may be passed."""


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
        chosen = config.space
        memory = PEAK_MEMORY_BYTES in (config.objective.cost, *config.budget.limits)
        sketch = sketch_of(config.model, shapes)
        sketch = replace(sketch, groups=site_groups(sketch, fused=chosen.tied))
        lists = SPACES[chosen.name].candidates(
            sketch,
            linear=chosen.linear,
            embedding=chosen.embedding,
            bypass=chosen.bypass,
            cache=chosen.cache if chosen.cache or memory else (),
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
    def site_lists(self) -> dict[str, tuple[LayerSpec, ...]]:
        """Options by site name, every site of a group with the group's list."""
        return {
            site: self.lists[group[0]]
            for group in self.sketch.groups
            if group[0] in self.lists
            for site in group
        }

    @cached_property
    def droppable(self) -> tuple[str, ...]:
        """Names of the sub-blocks that may be bypassed, in model order."""
        return tuple(site.name for site in self.sketch.subblocks() if site.name in self.lists)

    @cached_property
    def workload(self) -> Workload:
        """What times, operations and memory are of."""
        return workload_of(self.config)

    @cached_property
    def counted(self) -> tuple[str, ...]:
        """Names of the costs that every trial records: bytes, what is limited, what is minimised.

        The first is what the knapsack's budget is of: the minimised cost where it is limited or
        nothing is, else the first of those that are limited.
        """
        wanted, limits = self.config.objective.cost, self.config.budget.limits
        first = wanted if wanted in limits or not limits else next(iter(limits))
        return tuple(dict.fromkeys((first, *limits, wanted, WEIGHT_BYTES)))

    @property
    def resource(self) -> str:
        """Name of the cost that the knapsack's budget is of."""
        return self.counted[0]

    @cached_property
    def cost_models(self) -> dict[str, CostModel]:
        """The counted costs by name.

        Raises:
            ConfigError: If the device of a time is unknown, or nothing was measured on it.
        """
        return {name: cost_model(name, self.sketch, self.workload) for name in self.counted}

    def costs(self, plan: Plan) -> dict[str, float]:
        """Return the counted costs of a plan by name, each in the unit of its name."""
        found = {}
        for name, model in self.cost_models.items():
            found[name] = model.predict(plan) * model.tick
        return found

    def sources(self, plan: Plan) -> dict[str, str]:
        """Return where the counted costs of a plan come from, by name."""
        return {name: model.source_of(plan) for name, model in self.cost_models.items()}

    @property
    def limits(self) -> dict[str, float]:
        """Upper limits by cost name, each in the unit of its name."""
        return self.config.budget.limits

    def violation(self, plan: Plan) -> dict[str, float]:
        """Return cost minus limit by name; positive breaks the budget.

        A limit on a measured time keeps the median error of the measured model as a margin.
        """
        found = {}
        for name in self.limits:
            model = self.cost_models[name]
            found[name] = float((model.predict(plan) - self._table(name).bound) * model.tick)
        return found

    def within(self, plan: Plan) -> bool:
        """Return whether a plan holds every limit."""
        return all(value <= 0 for value in self.violation(plan).values())

    @property
    def budget(self) -> int:
        """The knapsack's budget: the limit on :attr:`resource`, or what the largest plan takes."""
        return self._table(self.resource).bound

    def spent(self, plan: Plan) -> int:
        """Return what a plan takes of :attr:`budget`."""
        return self.cost_models[self.resource].predict(plan)

    def reach(self, name: str) -> tuple[float, float]:
        """Return the smallest and the largest value of a cost over the plans of the space."""
        tick, table = self.cost_models[name].tick, self._table(name)
        low = smallest(self.problem(None, (name,))).cost
        return low * tick, (table.fixed_cost + int(table.cost.max(axis=1).sum())) * tick

    def _table(self, name: str) -> Limit:
        """Return what every decision takes of a cost, and its limit or what the most takes."""
        if name not in self._tables:
            self._tables[name] = self._priced(name)
        return self._tables[name]

    @cached_property
    def _tables(self) -> dict[str, Limit]:
        return {}

    def _priced(self, name: str) -> Limit:
        model, sites = self.cost_models[name], {group[0]: group for group in self.sketch.groups}
        cost = np.zeros((len(self.weight_groups), self._most_options), np.int64)
        for row, group in enumerate(self.weight_groups):
            for option, spec in enumerate(self.lists[group]):
                cost[row, option] = sum(model.site(site, spec) for site in sites[group])
        dropped, fixed = [], model.fixed()
        for subblock in self.sketch.subblocks():
            undecided = [site for site in subblock.members if site not in self._rows]
            inside = sum(model.site(site, DENSE) for site in (subblock.name, *undecided))
            fixed += inside
            if subblock.name in self.lists:
                dropped.append(-inside)
        limit = self.limits.get(name)
        if limit is None:
            bound = fixed + int(cost.max(axis=1).sum())
        else:
            bound = math.floor(limit / (1 + model.error) / model.tick + ROUNDING)
        return Limit(name, cost, np.array(dropped, dtype=np.int64), fixed, bound)

    @property
    def _most_options(self) -> int:
        return max(len(self.lists[name]) for name in self.weight_groups)

    @cached_property
    def _rows(self) -> dict[str, int]:
        """Row of the group of every site that has one."""
        row_of = {name: row for row, name in enumerate(self.weight_groups)}
        groups = (group for group in self.sketch.groups if group[0] in row_of)
        return {site: row_of[group[0]] for group in groups for site in group}

    def problem(self, scores: ScoreTable | None, costs: Sequence[str] = ()) -> Problem:
        """Return the knapsack; without scores every option costs the same KL, nothing.

        Args:
            scores: Predicted KL of the options.
            costs: Counted costs: what the budget is of, then what is limited beside it; when none
                is given, :attr:`resource` and all limits.
        """
        first, *others = costs or dict.fromkeys((self.resource, *self.limits))
        table = self._table(first)
        sites = {group[0]: group for group in self.sketch.groups}
        groups = []
        for row, name in enumerate(self.weight_groups):
            score = np.zeros(len(self.lists[name]))
            if scores is not None:
                score += [
                    sum(scores.options[site][spec.token()] for site in sites[name])
                    for spec in self.lists[name]
                ]
            groups.append(Group(name, table.cost[row, : len(score)], score))
        bypasses = []
        for place, name in enumerate(self.droppable):
            rows = (self._rows[m] for m in self.sketch[name].members if m in self._rows)
            lost = 0.0 if scores is None else scores.drop[name]
            saved = int(table.bypass_cost[place])
            bypasses.append(Bypass(name, tuple(dict.fromkeys(rows)), saved, lost))
        return Problem(
            tuple(groups),
            tuple(bypasses),
            table.fixed_cost,
            self.loss,
            first,
            tuple(self._table(name) for name in others),
        )

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
        """Refuse limits below the smallest reachable costs of this variant, alone or together.

        Raises:
            InfeasibleError: The message names the limit and the smallest value that it could have.
        """
        names = tuple(self.limits)
        for name in names:
            self._refuse(name, ())
        for count in range(1, len(names)):
            self._refuse(names[count], names[:count])

    def _refuse(self, name: str, others: tuple[str, ...]) -> None:
        """Refuse a limit that no plan holds within some others, which can be held together."""
        needed = smallest(self.problem(None, (name, *others)), "milp").cost
        if needed > self._table(name).bound:
            model = self.cost_models[name]
            value = needed * model.tick
            source = "" if model.source == EXACT else f", {model.source}"
            kept = [f"{option_of(o)} {format_cost(o, self.limits[o])}" for o in others]
            unit = name.rpartition("_")[2]
            within = f" within {' and '.join(kept)}" if kept else ""
            if model.error:
                within += f", {model.error:.1%} below it for the error of the measured model"
            raise InfeasibleError(
                f"{option_of(name)} {format_cost(name, self.limits[name])} cannot be "
                f"reached{within}: the smallest plan of the space {self.config.space.name!r} for "
                f"{self.name} needs {format_cost(name, value)} ({value:.15g} {unit}{source}). "
                "Raise the limit or add smaller options to the space."
            )


def workload_of(config: StudyConfig) -> Workload:
    """Return what the times, operations and memory of a study are of."""
    budget = config.budget
    return Workload(budget.context, budget.batch, budget.device, budget.times)


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
    slots = {part.slot for spec in plan.layers.values() for part in spec.filled()}
    used = {kind for slot, kind in KIND_OF_SLOT.items() if slot in slots}
    variant = [] if plan.variant == BASE else [plan.variant]
    return "+".join(variant + sorted(used - {QUANTIZED})) or QUANTIZED
