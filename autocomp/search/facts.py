"""What a study holds beside its trials: facts, as attributes of the Optuna study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from autocomp.core.cost import WEIGHT_BYTES
from autocomp.core.errors import ConfigError
from autocomp.core.metric import KL
from autocomp.core.spec import LayerSpec
from autocomp.core.variant import BASE
from autocomp.evaluate.record import Measurement
from autocomp.search.profile import Profile
from autocomp.search.records import FinishedRecord


class StudyFacts:
    """The facts of a study.

    Args:
        study: The Optuna study.
        study_dir: Where artefacts lie.
    """

    def __init__(self, study: optuna.Study, study_dir: Path) -> None:
        self.optuna = study
        self.study_dir = study_dir
        names = study.metric_names
        self.metric: str = names[0] if names else KL
        self.cost: str = names[1] if names else WEIGHT_BYTES

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings that the study was made with."""
        return dict(self.optuna.user_attrs.get("fingerprint", {}))

    def bind(self, name: str, value: str, files: str) -> None:
        """Store a fact that must stay what it is, such as the digest of the model's weights.

        Args:
            name: Name of the fact.
            value: The fact.
            files: Whose files it is the digest of, for the message.

        Raises:
            ConfigError: If the study was made with another value.
        """
        stored = self.optuna.user_attrs.get(name)
        if stored is None:
            self.optuna.set_user_attr(name, value)
        elif stored != value:
            raise ConfigError(
                f"the study in {self.study_dir} was made with another {name.replace('_', ' ')}: "
                f"stored {stored[:16]}, now {value[:16]}. The files of {files} have changed; put "
                "the old ones back, or choose another --study-dir."
            )

    def set_lists(self, lists: Mapping[str, Sequence[LayerSpec]], variant: str = BASE) -> None:
        """Store the option lists of a variant, or extend the stored ones.

        Raises:
            ConfigError: If a stored list would change otherwise than by appending, because the
                integers of earlier trials would then mean something else.
        """
        key = _lists_key(variant)
        wanted = {name: [spec.token() for spec in specs] for name, specs in lists.items()}
        stored = self.optuna.user_attrs.get(key, {})
        for name, tokens in stored.items():
            if wanted.get(name, [])[: len(tokens)] != tokens:
                raise ConfigError(
                    f"the options of {name!r} were {tokens} and would become "
                    f"{wanted.get(name, [])}; a study's lists can only be appended to. Use the "
                    "same options first, or start another study."
                )
        if wanted != stored:
            self.optuna.set_user_attr(key, wanted)

    def get_lists(self, variant: str = BASE) -> dict[str, tuple[LayerSpec, ...]]:
        """Return the option lists of a variant; empty before they were set."""
        stored = self.optuna.user_attrs.get(_lists_key(variant), {})
        return {
            name: tuple(LayerSpec.parse(token) for token in tokens)
            for name, tokens in stored.items()
        }

    def set_variant(self, token: str, record: Mapping[str, Any]) -> None:
        """Store what is known of a prepared variant, JSON values."""
        self.optuna.set_user_attr(f"variant:{token}", dict(record))

    def get_variant(self, token: str) -> dict[str, Any] | None:
        """Return what is known of a variant; ``None`` before it was prepared."""
        found: dict[str, Any] | None = self.optuna.user_attrs.get(f"variant:{token}")
        return found

    def set_warm_start(self, sources: Sequence[str], profiles: Sequence[Profile]) -> None:
        """Store what other studies have taught this one, so that it no longer needs them."""
        record = {"sources": list(sources), "profiles": [p.to_json() for p in profiles]}
        self.optuna.set_user_attr("warm_start", record)

    @property
    def warm_sources(self) -> tuple[str, ...]:
        """The studies that this one was warm-started from."""
        return tuple(self.optuna.user_attrs.get("warm_start", {}).get("sources", ()))

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """What other studies have taught this one."""
        found = self.optuna.user_attrs.get("warm_start", {}).get("profiles", ())
        return tuple(map(Profile.from_json, found))

    def set_base(self, measured: Measurement) -> None:
        """Store what the base itself measured on what the search reads."""
        self.optuna.set_user_attr("base", measured.to_json())

    @property
    def base_loss(self) -> float | None:
        """The metric of the base; ``None`` where it was not measured, as the KL of a base is 0."""
        found = self.optuna.user_attrs.get("base")
        return None if found is None else Measurement.from_json(found).metrics[self.metric].value

    def set_tokens(self, stage: str, what: str, count: int) -> None:
        """Store how many tokens one pass of a stage reads; doing it again counts once.

        Args:
            stage: What the tokens are spent on.
            what: The pass, such as the variant that is calibrated.
            count: Tokens.
        """
        key = f"tokens:{stage}:{what}"
        if self.optuna.user_attrs.get(key) != count:
            self.optuna.set_user_attr(key, count)

    def get_tokens(self) -> dict[str, int]:
        """Return the tokens of passes that belong to no trial, by stage."""
        found: dict[str, int] = {}
        for key, count in sorted(self.optuna.user_attrs.items()):
            kind, _, rest = key.partition(":")
            if kind == "tokens":
                stage = rest.partition(":")[0]
                found[stage] = found.get(stage, 0) + count
        return found

    def finished(self, number: int | None = None) -> list[FinishedRecord]:
        """Return all finished artefacts, or those of one trial: the plain one and trained ones."""
        found = [
            FinishedRecord.from_json(value)
            for key, value in self.optuna.user_attrs.items()
            if key.startswith("finished:")
        ]
        return [record for record in found if number is None or record.number == number]

    def set_finished(self, record: FinishedRecord) -> None:
        """Store what a finished trial measured; a study attribute, for its trial is closed."""
        token = f":{record.recovery}" if record.recovery else ""
        self.optuna.set_user_attr(f"finished:{record.number}{token}", record.to_json())


def _lists_key(variant: str) -> str:
    """Return the study attribute that holds a variant's option lists."""
    return "lists" if variant == BASE else f"lists:{variant}"
