"""Our samplers behind Optuna's interface, for a plain Optuna study."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from autocomp.config import StudyConfig
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress, Silent
from autocomp.core.registry import SAMPLERS
from autocomp.core.seeds import SeedTree
from autocomp.search.ask import Ask
from autocomp.search.context import SearchContext
from autocomp.search.run import Search
from autocomp.search.samplers.baselines import ranges_of, solution_of

PROPOSAL = "autocomp:proposal"

logger = logging.getLogger(__name__)


def contexts_of(
    config: StudyConfig, study_dir: Path, progress: Progress | None = None
) -> list[SearchContext]:
    """Return what a configuration searches, one context a variant; the base comes first.

    Options are compressed and scored, which takes minutes, unless the cache holds their scores.

    Args:
        config: Model, data, space and budget.
        study_dir: Folder that keeps the scores, and the study of ours that they belong to.
        progress: Listener.

    Raises:
        InfeasibleError: If the budget cannot be reached.
        ConfigError: If the study in ``study_dir`` was made with other settings.
    """
    return Search(config, study_dir, None, progress or Silent()).contexts()


@dataclass(frozen=True)
class _Trial:
    """A trial of a plain study as our samplers read it."""

    number: int
    params: Mapping[str, int]
    state: str
    loss: float | None
    origin: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def logical(self) -> int:
        """The trial's number."""
        return self.number


class AutocompSampler(BaseSampler):
    """A sampler of Optuna's kind that proposes what ours do.

    The objective asks for an integer a parameter of :attr:`distributions`, and returns the loss
    and the cost of the plan that they decode to, both to be minimised. Contexts of a real model
    are those of :func:`contexts_of`.

    >>> from autocomp.testing.samplers import ToyModel
    >>> model = ToyModel()
    >>> sampler = AutocompSampler(model.contexts, seed=0)
    >>> def objective(trial):
    ...     ranges = sampler.distributions
    ...     params = {name: trial.suggest_int(name, 0, ranges[name].high) for name in ranges}
    ...     plan = sampler.plan(params)
    ...     return model.loss(plan), model.contexts[0].exact_bytes(plan)
    >>> study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    >>> study.optimize(objective, n_trials=20)
    >>> [trial.state.name for trial in study.trials] == ["COMPLETE"] * 20
    True

    A trial's number is its logical number, and its proposal a function of the seed and the trials
    with smaller numbers. A proposal is stored with its trial before it is measured, so processes
    that share a storage see one another's running trials, and all of them may bear one seed. Any
    parameter that is not of the space, and all of a trial for which no new plan is left, are drawn
    at random.

    Args:
        contexts: What is searched, one a variant.
        seed: Seed of the proposals; random when ``None``.
        sampler: Name of one of our samplers that needs no read of the model.
        moves: Names of the moves that it may make; empty allows all.

    Raises:
        ConfigError: If there is no sampler of that name.
    """

    def __init__(
        self,
        contexts: Sequence[SearchContext],
        seed: int | None = None,
        sampler: str = "auto",
        moves: tuple[str, ...] = (),
    ) -> None:
        self._contexts = tuple(contexts)
        root = int(np.random.default_rng().integers(2**32)) if seed is None else seed
        self._seed = SeedTree(root)
        self._propose = SAMPLERS[sampler]
        self._moves = moves
        self._independent = RandomSampler(seed=self._seed.child("independent").seed % 2**32)
        self.distributions: dict[str, IntDistribution] = ranges_of(self._contexts)

    def plan(self, params: Mapping[str, int]) -> Plan:
        """Return the plan that the integers of a trial decode to."""
        context, solution = solution_of(self._contexts, params)
        return context.space.decode(context.params(solution))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the range of every parameter."""
        return dict(self.distributions)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return our proposal; nothing when no new plan is left."""
        told = [
            found
            for other in study.get_trials(deepcopy=False)
            if other.number < trial.number and (found := self._told(other)) is not None
        ]
        proposal = self._propose(
            Ask(trial.number, self._seed, self._contexts, told, moves=self._moves)
        )
        if proposal is None:
            logger.warning("no new plan is left; trial %d is drawn at random", trial.number)
            return {}
        kept = {
            "params": dict(proposal.params),
            "origin": proposal.origin,
            "details": dict(proposal.details),
        }
        study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, kept)
        return dict(proposal.params)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a random value of a parameter that is not ours."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Reseed what is drawn at random; proposals depend on the seed and the number alone."""
        self._independent.reseed_rng()

    def _told(self, trial: FrozenTrial) -> _Trial | None:
        """Return a trial as our samplers read it; ``None`` before its parameters are known."""
        kept = trial.system_attrs.get(PROPOSAL, {})
        params = kept.get("params")
        if self.distributions.keys() <= trial.params.keys():
            context, solution = solution_of(self._contexts, trial.params)
            found = context.params(solution)
            kept = kept if params == found else {}  # someone enqueued other parameters
            params = found
        if params is None:
            return None
        return _Trial(
            number=trial.number,
            params=params,
            state=trial.state.name,
            loss=trial.values[0] if trial.state == TrialState.COMPLETE else None,
            origin=kept.get("origin", ""),
            details=kept.get("details", {}),
        )
