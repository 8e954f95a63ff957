"""Option lists as integer parameters: the search space of one model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from optuna.distributions import IntDistribution

from autocomp.core.errors import PlanError
from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec

INERT = 0


@dataclass(frozen=True)
class OptionSpace:
    """One integer a group: the index of an option on the group's list.

    The parameters of linears inside a bypassed sub-block are inert: :meth:`decode` ignores them
    and :meth:`encode` writes 0. So ``decode(encode(plan)) == plan`` for every plan of the space,
    and ``encode(decode(params))`` is the canonical form of an assignment.

    Args:
        sketch: The model.
        lists: Options by group name (the name of the group's first site); a sub-block that may
            be dropped has exactly two, keep and bypass.

    Raises:
        PlanError: If a weight group has no options, or a list belongs to no group.
    """

    sketch: Sketch
    lists: Mapping[str, tuple[LayerSpec, ...]]

    def __post_init__(self) -> None:
        """Check that the lists and the groups of the sketch match."""
        names = {group[0] for group in self.sketch.groups}
        if unknown := sorted(set(self.lists) - names):
            raise PlanError(f"option lists for {unknown}, which lead no group of this model.")
        for name in names:
            options = self.lists.get(name, ())
            if self.sketch[name].kind == "subblock":
                if options and (len(options) != 2 or options[0] != DENSE):
                    raise PlanError(f"{name!r}: a sub-block's options are (dense, bypass).")
            elif not options and self.sketch[name].kind != "cache":
                raise PlanError(f"{name!r}: the group has no options; give at least one.")

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Sites by group name, of the groups that have options, in model order."""
        return {group[0]: group for group in self.sketch.groups if group[0] in self.lists}

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of distinct plans (inert parameters not counted)."""
        owner = self.sketch.owner
        droppable = [name for name in self.groups if self.sketch[name].kind == "subblock"]
        ways: dict[str | None, float] = dict.fromkeys((None, *droppable), 0.0)
        for name in self.groups:
            if name not in droppable:
                block = owner.get(name)
                ways[block if block in droppable else None] += math.log10(len(self.lists[name]))
        # 10^n ways to keep a sub-block and one to drop it: log10(10^n + 1), without overflow.
        once = [math.log1p(10.0 ** -ways[block]) / math.log(10) for block in droppable]
        return sum(ways.values()) + sum(once)

    def distributions(self) -> dict[str, IntDistribution]:
        """Return Optuna's integer range of every parameter, by group name."""
        return {name: IntDistribution(0, len(self.lists[name]) - 1) for name in self.groups}

    def decode(self, params: Mapping[str, int]) -> Plan:
        """Return the plan of an assignment; a bypassed sub-block's linears are dense.

        Args:
            params: Option index by group name; inert ones may be missing.

        Raises:
            PlanError: If a name is unknown, a needed one missing, or an index out of range.
        """
        if unknown := sorted(set(params) - set(self.groups)):
            raise PlanError(
                f"unknown parameters {unknown}; a parameter is named by a group's first site."
            )
        layers = {site.name: DENSE for site in self.sketch.sites}
        for block in self.sketch.subblocks():
            if block.name in self.groups:
                layers[block.name] = self._option(block.name, params)
        dropped = self._dropped(layers)
        for name, sites in self.groups.items():
            active = [site for site in sites if site not in dropped]
            if active and self.sketch[name].kind != "subblock":
                layers.update(dict.fromkeys(active, self._option(name, params)))
        return Plan(layers=layers)

    def encode(self, plan: Plan) -> dict[str, int]:
        """Return the canonical assignment of a plan, inert parameters at 0.

        Raises:
            PlanError: If the plan names other sites, the sites of a group disagree, or a spec is
                not on its group's list.
        """
        if unknown := sorted(set(plan.layers) - set(self.sketch.by_name)):
            raise PlanError(f"the plan decides about {unknown}, which this model does not have.")
        params = {}
        dropped = self._dropped(plan.layers)
        for group in self.sketch.groups:
            name = group[0]
            chosen = {plan[site] for site in group if site not in dropped}
            if len(chosen) > 1:
                tokens = sorted(spec.token() for spec in chosen)
                raise PlanError(
                    f"the sites {list(group)} share one decision, but the plan has {tokens}."
                )
            options = self.lists.get(name, (DENSE,))
            spec = chosen.pop() if chosen else options[INERT]
            if spec not in options:
                allowed = ", ".join(option.token() for option in options)
                raise PlanError(f"{name!r}: {spec.token()!r} is not on its list: {allowed}.")
            if name in self.groups:
                params[name] = options.index(spec)
        return params

    def _option(self, name: str, params: Mapping[str, int]) -> LayerSpec:
        """Return the chosen option of a group."""
        options = self.lists[name]
        index = params.get(name)
        if index is None:
            raise PlanError(f"the parameter {name!r} is missing; give 0..{len(options) - 1}.")
        if not 0 <= index < len(options):
            raise PlanError(
                f"{name!r}: option {index} does not exist; give 0..{len(options) - 1}."
            )
        return options[index]

    def _dropped(self, layers: Mapping[str, LayerSpec]) -> set[str]:
        """Return the linears inside sub-blocks that ``layers`` bypasses."""
        return {
            member
            for block in self.sketch.subblocks()
            if layers.get(block.name, DENSE) != DENSE
            for member in block.members
        }
