"""A recorded study as a tabular evaluator: searches without the model, to compare samplers.

A plan that the study measured to the top rung returns the losses that it measured, unit for unit;
one that was stopped returns those that were read, and goes on at the level that they show. Any
other plan gets a smooth stand-in of :mod:`autocomp.search.stand_in`: the study's own corrected
additive model, with a residual as large as the study's leave-one-out errors, which depends on the
replay's seed and the plan alone. Units follow the mean profile of the records, with deviations of
their measured spread.

How far to trust it: it tells whether a sampler finds the good plans of a space whose losses are
nearly additive in options, as measured ones are, and how many trials and tokens it takes. It knows
nothing where the study measured nothing: the factors of options that no trial tells are the
prior's, and the best plan of the replay need not be the model's. It flatters samplers that believe
in additive scores, by what it is made of. Differences well below :attr:`Replay.leave_one_out` mean
nothing for the model itself.

Reference: Eggensperger et al. 2015, Efficient Benchmarking of Hyperparameter Optimizers via
Surrogates, https://doi.org/10.1609/aaai.v29i1.9375
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autocomp.core.errors import ConfigError, PlanError
from autocomp.core.metric import positive
from autocomp.core.plan import Plan
from autocomp.core.registry import SAMPLERS
from autocomp.core.seeds import SeedTree
from autocomp.evaluate.ladder import Ladder
from autocomp.search.ask import Ask, Linearisation, Proposal
from autocomp.search.context import SearchContext
from autocomp.search.gate import Gate
from autocomp.search.knapsack import Floats
from autocomp.search.records import FIDELITY, TrialRecord
from autocomp.search.run import ALWAYS_FULL, load_study_config
from autocomp.search.stand_in import StandIn, directions
from autocomp.search.stored import searched_variants, stored_context
from autocomp.search.study import Study

FEWEST = 3


class Replay:
    """The losses of a study's plans, recorded or stood in for.

    Args:
        contexts: What the study searched, one a variant.
        records: Its trials.
        ladder: Units a rung, smallest first.
        seed: Which stand-in is drawn.

    Raises:
        ConfigError: If fewer than three trials were measured to the top rung, unit by unit.
    """

    def __init__(
        self,
        contexts: Sequence[SearchContext],
        records: Sequence[TrialRecord],
        ladder: Sequence[int],
        seed: int = 0,
    ) -> None:
        self.contexts, self.ladder = tuple(contexts), tuple(ladder)
        top = self.ladder[-1]
        read = [record for record in records if record.loss is not None and record.unit_loss]
        full = [r for r in read if r.state == "COMPLETE" and len(r.unit_loss) == top]
        if len(full) < FEWEST:
            raise ConfigError(
                f"a replay needs {FEWEST} trials that were measured on all {top} units, and the "
                f"study holds {len(full)}. Run the search on until it does."
            )
        self.measured = len(full)
        self._recorded = {record.digest: record for record in read}
        self.tokens_a_unit = sum(r.tokens for r in full) / (top * len(full))
        losses = np.array([record.unit_loss for record in full])
        relative = losses / np.array([[positive(float(np.mean(row)))] for row in losses])
        self._profile: Floats = relative.mean(axis=0)
        self._spread = float((relative - self._profile).std())
        root = SeedTree(seed).child("replay")
        self._directions = directions(root.child("units"), top)
        self._pool_directions = directions(root.child("pool"), top)
        self._units: dict[str, tuple[Floats, Floats]] = {}
        self._stand_ins: list[StandIn] = []
        for context in self.contexts:
            prior = self._stand_ins[0].correction if self._stand_ins else None
            mine = [record for record in full if context.owns(record.params)]
            node = root.child("variant", context.variant)
            self._stand_ins.append(StandIn(context, mine, prior, node))
        scale = _root_mean_square([one.standardised for one in self._stand_ins])
        for one in self._stand_ins:
            one.calibrate(scale)
        self.leave_one_out = _root_mean_square([one.errors for one in self._stand_ins])

    @classmethod
    def of(cls, source: Study | str | Path, seed: int = 0) -> "Replay":
        """Return the replay of a study; no weights are read.

        Args:
            source: A study, or what :meth:`Study.open_existing` opens.
            seed: Which stand-in is drawn.

        Raises:
            ConfigError: If there is no such study, or it holds too little.
        """
        study = source if isinstance(source, Study) else Study.open_existing(source)
        config, records = load_study_config(study.study_dir), study.records()
        contexts = [
            stored_context(config, study, study.study_dir, variant)
            for variant in searched_variants(config, study.study_dir)
        ]
        top = max((len(record.unit_loss) for record in records), default=0) or 1
        if config.objective.tasks:
            ladder = tuple(sorted({min(rung, top) for rung in config.objective.rungs}))
        else:
            ladder = Ladder.from_tokens(config.data.rungs, config.data.window, top).windows
        return cls(contexts, records, ladder, seed)

    @property
    def pool(self) -> int:
        """How many units :meth:`pool_losses` may read, text that no trial is measured on."""
        return len(self._profile)

    def losses(self, plan: Plan, count: int | None = None) -> tuple[float, ...]:
        """Return the loss of the first units of a plan.

        Args:
            plan: A plan of the space.
            count: How many units; those of the top rung by default.

        Raises:
            ConfigError: If the plan is of no variant that the study searched.
        """
        count = self.ladder[-1] if count is None else count
        record = self._recorded.get(plan.digest)
        if record is not None and len(record.unit_loss) >= count:
            return tuple(record.unit_loss[:count])
        return tuple(self._stood_in(plan)[0][:count].tolist())

    def pool_losses(self, plan: Plan, units: Sequence[int]) -> tuple[float, ...]:
        """Return the loss of a plan on units of the pool, which are stood in for."""
        return tuple(self._stood_in(plan)[1][list(units)].tolist())

    def _stood_in(self, plan: Plan) -> tuple[Floats, Floats]:
        """Return the loss of every unit of the top rung, and of the pool."""
        if plan.digest not in self._units:
            stand_in, params = self._owner(plan)
            solution = stand_in.solution(params)
            features, level = stand_in.features(solution), stand_in.level(solution)
            shape = np.maximum(1 + self._spread * (self._directions @ features), 0) * self._profile
            record = self._recorded.get(plan.digest)
            known = np.array(record.unit_loss if record is not None else ())
            if known.size:
                level = known.mean() / positive(shape[: known.size].mean()) * shape.mean()
            units = shape * (level / positive(shape.mean()))
            units[: known.size] = known
            away = np.maximum(1 + self._spread * (self._pool_directions @ features), 0)
            self._units[plan.digest] = (units, level * self._profile * away)
        return self._units[plan.digest]

    def _owner(self, plan: Plan) -> tuple[StandIn, Mapping[str, int]]:
        """Return the stand-in of a plan's variant, and the plan's parameters."""
        for context, stand_in in zip(self.contexts, self._stand_ins, strict=True):
            with suppress(PlanError):
                return stand_in, context.space.encode(plan)
        raise ConfigError(
            f"the plan {plan.digest[:12]} ({plan.variant}) is not of a space that the study "
            "searched. Give a plan that one of its contexts decodes."
        )


class ReplayOracle:
    """Reads of a replay that a sampler may ask for; there is no gradient.

    Args:
        replay: The replay.
    """

    parts = 0

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._read: set[tuple[str, int]] = set()

    @property
    def pool(self) -> int:
        """How many units :meth:`losses` may read."""
        return self._replay.pool

    @property
    def tokens(self) -> int:
        """Tokens read so far, each unit of a plan once."""
        return round(len(self._read) * self._replay.tokens_a_unit)

    def losses(self, plan: Plan, units: Sequence[int]) -> tuple[float, ...]:
        """Return the loss of a plan on some units of the pool."""
        self._read.update((plan.digest, unit) for unit in units)
        return self._replay.pool_losses(plan, units)

    def linearised(self, plan: Plan, part: int) -> Linearisation:
        """Refuse, for there is no model."""
        raise LookupError("a replayed search has no gradient")


@dataclass(frozen=True)
class Trace:
    """What a replayed search did.

    Args:
        records: Its trials.
        tokens: Tokens that it had read by the end of each, reads of the oracle included; those of
            the scores are not.
    """

    records: tuple[TrialRecord, ...]
    tokens: tuple[int, ...]

    def best(self) -> tuple[float, ...]:
        """Return the lowest loss that was measured by the end of each trial; infinite if none."""
        measured = [r.loss if r.feasible and r.loss is not None else np.inf for r in self.records]
        return tuple(np.minimum.accumulate(measured).tolist())


def replay_search(
    replay: Replay,
    sampler: str,
    seed: int,
    *,
    trials: int,
    tokens: int | None = None,
    moves: tuple[str, ...] = (),
) -> Trace:
    """Run a sampler against a replay, in memory, with the ladder and the gate of a search.

    Args:
        replay: The evaluator.
        sampler: Name of the sampler.
        seed: Seed of the search.
        trials: Most trials.
        tokens: Tokens after which no trial begins; no limit when ``None``.
        moves: Names of the moves that the sampler may make; empty allows all.

    Raises:
        ConfigError: If there is no sampler of that name, or it needs a model.
        InfeasibleError: If the budget cannot be reached.
    """
    propose, oracle, root = SAMPLERS[sampler], ReplayOracle(replay), SeedTree(seed)
    told: list[TrialRecord] = []
    spent: list[int] = []
    read = 0
    while len(told) < trials and (tokens is None or not spent or spent[-1] < tokens):
        ask = Ask(len(told), root, replay.contexts, tuple(told), oracle, moves)
        proposal = propose(ask)
        if proposal is None:
            break
        told.append(_measured(replay, proposal, told))
        read += told[-1].tokens
        spent.append(read + oracle.tokens)
    return Trace(tuple(told), tuple(spent))


def _measured(replay: Replay, proposal: Proposal, told: Sequence[TrialRecord]) -> TrialRecord:
    """Return the trial of a proposal: refused, stopped at a rung, or measured to the top."""
    context = next(c for c in replay.contexts if c.owns(proposal.params))
    size, top = context.exact_bytes(proposal.plan), replay.ladder[-1]
    over = size - context.budget_bytes
    losses: tuple[float, ...] = ()
    if over <= 0:
        full = proposal.origin.startswith(ALWAYS_FULL)
        gate = None if full else Gate.of(told, size, top)
        for count in replay.ladder:
            losses = replay.losses(proposal.plan, count)
            if count < top and gate is not None and gate.stops(losses):
                break
    complete = len(losses) == top
    return TrialRecord(
        number=proposal.logical,
        logical=proposal.logical,
        state="COMPLETE" if complete else "PRUNED",
        origin=proposal.origin,
        family=proposal.family,
        plan_json=proposal.plan.canonical(),
        digest=proposal.plan.digest,
        params=proposal.params,
        weight_bytes=size,
        constraints={"weight_bytes": float(over), FIDELITY: 0.0 if complete else 1.0},
        loss=float(np.mean(losses)) if losses else None,
        unit_loss=losses,
        tokens=round(len(losses) * replay.tokens_a_unit),
        details=proposal.details,
    )


def _root_mean_square(parts: Sequence[Floats]) -> float:
    return float(np.sqrt(np.mean(np.square(np.concatenate(parts)))))
