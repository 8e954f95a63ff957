"""What a study holds of its variants: read back without loading a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocomp.config import StudyConfig
from autocomp.core.errors import ConfigError
from autocomp.core.metric import KL
from autocomp.core.variant import BASE
from autocomp.evaluate.record import Measurement
from autocomp.models.surgeon import MlpShape, shapes_from_json, shapes_to_json
from autocomp.search.context import Schedule, SearchContext
from autocomp.search.correction import SPREAD, UNKNOWN_UNIT, option_class
from autocomp.search.profile import Profile, transfer
from autocomp.search.scoring import ScoreTable
from autocomp.search.setup import Setup, family
from autocomp.search.study import Study


@dataclass(frozen=True)
class Prepared:
    """What a study keeps of a variant.

    Args:
        shapes: Shape of every MLP by name.
        edit_digest: Identifies the kept channels and the biases.
        measurement: Of the uncompressed variant, on what the search reads.
    """

    shapes: Mapping[str, MlpShape]
    edit_digest: str
    measurement: Measurement

    def loss(self, metric: str) -> float:
        """Return a metric of the uncompressed variant."""
        return self.measurement.metrics[metric].value

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "shapes": shapes_to_json(self.shapes),
            "edit_digest": self.edit_digest,
            "measurement": self.measurement.to_json(),
        }

    @classmethod
    def of(cls, study: Study, token: str) -> "Prepared | None":
        """Return what a study holds of a variant; ``None`` before it was prepared."""
        data = study.get_variant(token)
        if data is None:
            return None
        return cls(
            shapes_from_json(data["shapes"]),
            data["edit_digest"],
            Measurement.from_json(data["measurement"]),
        )


def stored_setup(config: StudyConfig, study: Study, variant: str) -> Setup:
    """Return the setup of a variant as a study holds it; no weights are read.

    Raises:
        ConfigError: If the study has not prepared it.
    """
    if variant == BASE:
        setup = Setup.of(config, loss=study.base_loss or 0.0)
    else:
        known = Prepared.of(study, variant)
        if known is None:
            raise ConfigError(f"the study has not prepared the variant {variant!r} yet.")
        setup = Setup.of(config, variant, known.shapes, known.loss(study.metric))
    lists = study.get_lists(variant)  # a space's defaults may change between versions
    return setup.with_lists(lists) if lists else setup


def search_context(
    setup: Setup, scores: ScoreTable, profiles: Sequence[Profile] = ()
) -> SearchContext:
    """Return what proposals for one variant are made from; profiles are of other studies."""
    sketch, effort, problem = setup.sketch, setup.config.search, setup.problem(scores)
    metric = setup.config.objective.metric
    classes = {
        name: tuple(option_class(spec, sketch[name].kind) for spec in setup.lists[name])
        for name in setup.weight_groups
    }
    return SearchContext(
        space=setup.space,
        problem=problem,
        classes=classes,
        roles={name: sketch[name].role for name in (*setup.weight_groups, *setup.droppable)},
        budget_bytes=setup.budget,
        exact_bytes=setup.spent,
        within=setup.within,
        family_of=family,
        schedule=Schedule(
            uniforms=effort.baselines,
            ladder=effort.ladder,
            lowest=effort.lowest_share,
            at_budget=effort.at_budget,
        ),
        variant=(BASE, *setup.config.space.variants).index(setup.variant),
        common=SPREAD["common"] if metric == KL and scores.in_nats else UNKNOWN_UNIT,
        pairs=scores.pairs,
        signals={
            token: scores.signals[token] for token in effort.allocations if token in scores.signals
        },
        transfer=transfer(profiles, sketch, problem, classes, metric) if profiles else None,
    )


def write_json(path: Path, data: object) -> None:
    """Write JSON in one step."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(json.dumps(data, indent=1, sort_keys=True), encoding="utf-8")
    partial.replace(path)


def scores_path(study_dir: Path, variant: str) -> Path:
    """Return where a study directory keeps a variant's scores."""
    return study_dir / ("scores.json" if variant == BASE else f"scores-{variant}.json")


def read_scores(study_dir: Path, variant: str) -> ScoreTable:
    """Return the scores of a variant that a study directory holds.

    Raises:
        ConfigError: If they cannot be read.
    """
    path = scores_path(study_dir, variant)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return ScoreTable.from_json(data)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the scores of the study are missing or damaged ({path.name}: {error}). Run the "
            "search again on this directory; it resumes."
        ) from error


def stored_context(
    config: StudyConfig, study: Study, study_dir: Path, variant: str
) -> SearchContext:
    """Return the context of a variant as a study holds it; no weights are read."""
    setup, scores = stored_setup(config, study, variant), read_scores(study_dir, variant)
    return search_context(setup, scores, study.profiles)


def searched_variants(config: StudyConfig, study_dir: Path) -> tuple[str, ...]:
    """Return the variants that a study has scored, in order; the base before it has."""
    names = (BASE, *config.space.variants)
    return tuple(name for name in names if scores_path(study_dir, name).exists()) or (BASE,)


def first_context(config: StudyConfig, study: Study, study_dir: Path) -> SearchContext:
    """Return the context of the first variant that a study searches; no weights are read."""
    return stored_context(config, study, study_dir, searched_variants(config, study_dir)[0])
