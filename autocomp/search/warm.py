"""Starting a study from what others have learned: their files are read, never their models."""

from dataclasses import replace
from pathlib import Path

from autocomp.config import StudyConfig, load_config
from autocomp.core.errors import ConfigError
from autocomp.core.sketch import Sketch
from autocomp.core.variant import BASE
from autocomp.layers.native import native_sketch
from autocomp.models import sketch_of
from autocomp.models.structure import groups
from autocomp.search.profile import Profile
from autocomp.search.samplers.outlook import best_within, correction_of
from autocomp.search.setup import Setup
from autocomp.search.stored import read_scores, search_context
from autocomp.search.study import Study


def read_profile(study_dir: Path) -> Profile:
    """Return what a study has learned of its model, sharpest near its best plan.

    Its settings and trials come from its storage, its scores from ``scores.json``, and the
    architecture from a finished artefact, or where there is none from the model's config.

    Args:
        study_dir: The directory of a study that has measured plans.

    Raises:
        ConfigError: If there is no such study, or it has neither scores nor measured plans.
    """
    study = Study.open_existing(study_dir)
    config = load_config(None, study.fingerprint)
    sketch = _sketch(study, config)
    sketch = replace(sketch, groups=groups(sketch, fused=config.space.tied))
    setup = Setup(config, sketch, study.get_lists(), loss=study.base_loss or 0.0)
    scores = read_scores(study_dir, BASE)
    context = search_context(setup, scores)
    records = [record for record in study.records() if context.owns(record.params)]
    best = best_within(context, records, context.budget_bytes)
    if best is None:
        raise ConfigError(
            f"the study in {study_dir} has measured no plan of the model as it is, so there is "
            "nothing to start from. Run its search first, or take it off search.warm_from."
        )
    correction = correction_of(context, records, best)
    return Profile.of(correction, sketch, study.metric, scores.score)


def _sketch(study: Study, config: StudyConfig) -> Sketch:
    """Return the architecture of a study's model."""
    for record in study.records():
        done = record.finished
        if done is not None and record.plan.variant == BASE:
            folder = study.study_dir / done.artefact
            if (folder / "config.json").is_file():
                return native_sketch(folder)
    return sketch_of(config.model)


def warm_start(config: StudyConfig, study: Study) -> None:
    """Let a study keep what the studies in ``search.warm_from`` have learned; read once.

    Raises:
        ConfigError: If one of them cannot be read or corrected another score, or the study was
            started from others.
    """
    sources = tuple(str(Path(source).resolve()) for source in config.search.warm_from)
    if not sources or sources == study.warm_sources:
        return
    if study.warm_sources:
        raise ConfigError(
            f"the study in {study.study_dir} was started from {', '.join(study.warm_sources)}, "
            f"and search.warm_from is now {', '.join(sources)}. Leave it as it was or empty, or "
            "choose another --study-dir."
        )
    profiles = [read_profile(Path(source)) for source in sources]
    for source, profile in zip(sources, profiles, strict=True):
        if profile.score != config.search.score:
            raise ConfigError(
                f"the study in {source} corrected the score {profile.score!r}, and this one uses "
                f"{config.search.score!r}; the factors of one say nothing of the other. Set "
                f"search.score to {profile.score!r}, or take the study off search.warm_from."
            )
    study.set_warm_start(sources, profiles)
