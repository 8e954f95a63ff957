"""The contract that every sampler fulfils, and a search without a model to hold it against.

:class:`ToyModel` has option lists of real methods, costs of real formats, and a loss that scores
predict up to a factor a class and a site. :func:`check_sampler` raises ``AssertionError`` on a
breach.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from autocomp.core.plan import Plan
from autocomp.core.registry import SPACES, load_object
from autocomp.core.seeds import SeedTree
from autocomp.core.variant import BASE
from autocomp.search.ask import Ask, Linearisation, Proposal, Sampler
from autocomp.search.context import SearchContext, Space
from autocomp.search.correction import option_class
from autocomp.search.knapsack import Bypass, Floats, Group, Problem
from autocomp.search.records import TrialRecord
from autocomp.search.setup import family
from autocomp.testing.spaces import toy_sketch

OptionSpace = load_object("autocomp.search_spaces._options:OptionSpace")
VariantSpace = load_object("autocomp.search_spaces._variants:VariantSpace")
layout = load_object("autocomp.methods.compose:layout")

LINEAR = ("gptq-w2g64", "gptq-w3g64", "gptq-w4g64", "gptq-w8g64")
EMBEDDING = ("rtn-w4g64-mse", "rtn-w8g64", "dense")
VARIANT = "narrow"
VARIANT_SHARE, VARIANT_LOSS = 0.8, 0.05
UNITS = 16


@dataclass(frozen=True)
class ToyModel:
    """A synthetic model: contexts as a search makes them, and what its plans measure.

    The loss of a plan is ``S·(1 + S/2)``, ``S`` the sum over its options of score times a factor
    that is drawn for the class and the site. A score falls by 4 a bit.

    Args:
        blocks: Decoder blocks.
        bits: Budget, bits a weight of the linears.
        bypass: Whether sub-blocks may be dropped.
        variant: Whether a variant is searched beside the base: smaller, and worse to begin with.
        seed: Of scores and factors.
        linear: Option tokens of the linears.
        allocations: Tokens of the allocations to start from; what they read is drawn.
    """

    blocks: int = 2
    bits: float = 4.0
    bypass: bool = True
    variant: bool = False
    seed: int = 0
    linear: tuple[str, ...] = LINEAR
    allocations: tuple[str, ...] = ()

    @cached_property
    def contexts(self) -> tuple[SearchContext, ...]:
        """The base, and the variant if there is one."""
        sketch = toy_sketch(blocks=self.blocks)
        lists = SPACES["bits"].candidates(
            sketch, linear=self.linear, embedding=EMBEDDING, bypass=self.bypass
        )
        options = OptionSpace(sketch, lists)
        if not self.variant:
            return (self._context(options, 0),)
        spaces = [VariantSpace(options, (BASE, VARIANT), name) for name in (BASE, VARIANT)]
        return tuple(self._context(space, index) for index, space in enumerate(spaces))

    def _context(self, space: Space, variant: int) -> SearchContext:
        sketch, lists = space.sketch, space.lists
        rng = SeedTree(self.seed).child("scores").numpy()
        share = VARIANT_SHARE if variant else 1.0
        groups, linears = [], 0
        for site in sketch.weights():
            sizes = [layout(spec, site.shape, sketch.dtype).nbytes for spec in lists[site.name]]
            weights = site.shape[0] * site.shape[1]
            bits = 8 * np.array(sizes) / weights
            linears += weights if site.kind == "linear" else 0
            scale = 1e-4 * weights * rng.lognormal(0.0, 0.5)
            cost = (share * np.array(sizes)).astype(np.int64)
            groups.append(Group(site.name, cost, scale * 4.0**-bits))
        rows = {group.name: row for row, group in enumerate(groups)}
        bypasses = tuple(
            Bypass(site.name, tuple(map(rows.__getitem__, site.members)), 0, rng.lognormal(-1, 1))
            for site in sketch.subblocks()
            if site.name in lists
        )
        problem = Problem(tuple(groups), bypasses, 1000, VARIANT_LOSS if variant else 0.0)
        table = layout(lists[groups[0].name][1], sketch[groups[0].name].shape, sketch.dtype)
        return SearchContext(
            space=space,
            problem=problem,
            classes={
                name: tuple(option_class(spec, sketch[name].kind) for spec in lists[name])
                for name in rows
            },
            roles={site.name: site.role for site in sketch.sites},
            budget_bytes=1000 + table.nbytes + int(self.bits * linears / 8),
            exact_bytes=lambda plan: self._bytes(variant, plan),
            family_of=family,
            variant=variant,
            signals=self._signals,
        )

    @property
    def _signals(self) -> dict[str, dict[str, float]]:
        """What allocations would have read, by site."""
        linears = [s.name for s in toy_sketch(blocks=self.blocks).sites if s.kind == "linear"]
        rng = SeedTree(self.seed).child("signals").numpy()
        return {
            token: dict(zip(linears, rng.lognormal(size=len(linears)).tolist(), strict=True))
            for token in self.allocations
        }

    def _bytes(self, variant: int, plan: Plan) -> int:
        context = self.contexts[variant]
        return context.problem.solution(*context.decisions(context.space.encode(plan))).cost

    @cached_property
    def _factors(self) -> tuple[Floats, Floats]:
        """True factors of options (groups, most options) and of bypasses (bypasses,)."""
        rng = SeedTree(self.seed).child("factors").numpy()
        problem = self.contexts[0].problem
        site = rng.lognormal(0.7, 0.5, (len(problem.groups), 1))
        options = site * rng.lognormal(0.0, 0.3, problem.score.shape[1])
        return options, rng.lognormal(0.7, 0.5, len(problem.bypasses))

    def owner(self, plan: Plan) -> SearchContext:
        """Return the context that a plan is of."""
        return self.contexts[0 if plan.variant == BASE else 1]

    def loss(self, plan: Plan) -> float:
        """Return what a plan measures, nats a token."""
        context = self.owner(plan)
        options, bypasses = self._factors
        problem = context.problem.with_scores(
            context.problem.score * options, context.problem.bypass_score * bypasses
        )
        total = problem.solution(*context.decisions(context.space.encode(plan))).score
        return total * (1 + total / 2)

    parts: ClassVar[int] = 0

    @property
    def pool(self) -> int:
        """How many units of text :meth:`losses` may read."""
        return UNITS

    def losses(self, plan: Plan, units: Sequence[int]) -> tuple[float, ...]:
        """Return the loss of a plan on some units, each a little harder than the one before."""
        luck = SeedTree(self.seed).child("units", plan.digest).numpy().normal(size=UNITS)
        return tuple(self.loss(plan) * (1 + 0.1 * u / UNITS + 0.03 * luck[u]) for u in units)

    def linearised(self, plan: Plan, part: int) -> Linearisation:
        """Refuse, for there is no gradient."""
        raise LookupError("a toy model has no gradient")

    def record(self, proposal: Proposal, state: str = "COMPLETE") -> TrialRecord:
        """Return the trial of a proposal in a state; one that was stopped read half the units."""
        size = self.owner(proposal.plan).exact_bytes(proposal.plan)
        read = {"COMPLETE": UNITS, "PRUNED": UNITS // 2}.get(state, 0)
        losses = self.losses(proposal.plan, range(read))
        return TrialRecord(
            number=proposal.logical,
            logical=proposal.logical,
            state=state,
            origin=proposal.origin,
            family=proposal.family,
            plan_json=proposal.plan.canonical(),
            digest=proposal.plan.digest,
            params=proposal.params,
            weight_bytes=size,
            loss=float(np.mean(losses)) if losses else None,
            unit_loss=losses,
            tokens=512 * read,
            details=proposal.details,
        )


def run_sampler(
    sampler: Sampler,
    model: ToyModel,
    trials: int,
    seed: int = 0,
    states: Sequence[str] = ("COMPLETE",),
) -> list[TrialRecord]:
    """Return the trials of an inline search of a toy model, in these states in turns."""
    told: list[TrialRecord] = []
    while len(told) < trials:
        ask = Ask(len(told), SeedTree(seed), model.contexts, tuple(told), model)
        proposal = sampler(ask)
        if proposal is None:
            break
        told.append(model.record(proposal, states[len(told) % len(states)]))
    return told


def check_sampler(sampler: Sampler, model: ToyModel, trials: int) -> list[TrialRecord]:
    """A sampler's proposals are new, canonical, within the budget, and functions of the ask.

    Args:
        sampler: The sampler.
        model: What it searches.
        trials: How many proposals to look at, of a space that holds more.

    Returns:
        The trials.
    """
    told = run_sampler(sampler, model, trials)
    assert len(told) == trials, "a sampler goes on while there are new plans"
    assert len({record.digest for record in told}) == trials, "no plan is proposed twice"
    for record in told:
        context = model.owner(record.plan)
        assert context.owns(record.params)
        assert context.space.decode(record.params) == record.plan
        assert context.space.encode(record.plan) == record.params, "parameters are canonical"
        assert context.exact_bytes(record.plan) <= context.budget_bytes
        assert record.origin
        assert record.family == context.family_of(record.plan)
    check_purity(sampler, model, told)
    return told


def check_purity(sampler: Sampler, model: ToyModel, told: Sequence[TrialRecord]) -> None:
    """A search that was killed goes on as it would have, whatever else the storage holds.

    The last proposal is made again: by a process with contexts of its own, from the trials in any
    order, with later ones among them.
    """
    last = told[-1]
    later = replace(last, number=len(told), logical=len(told), loss=last.loss and last.loss / 2)

    for trials in (told[:-1], told[-2::-1], [later, *told]):
        contexts = replace(model).contexts  # nothing that was kept in the old ones
        found = sampler(Ask(last.logical, SeedTree(0), contexts, tuple(trials), model))
        assert found is not None
        assert (found.logical, found.origin) == (last.logical, last.origin)
        assert found.params == last.params, "a proposal is a function of the ask"
        assert dict(found.details) == dict(last.details)
