"""The study configuration: one frozen, strict model, read from YAML and the command line."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from autocomp.core.errors import ConfigError
from autocomp.core.finish import DEFAULT_FINISH, finish_spec
from autocomp.core.metric import KL, TASK_ERROR
from autocomp.core.recipe import CORPUS, DEFAULT_CALIBRATION, MIX, CalibrationText
from autocomp.core.registry import SAMPLERS, SPACES, nearest
from autocomp.core.units import parse_bytes, parse_duration
from autocomp.core.variant import variant_spec

PRESETS = "autocomp.search_spaces.presets"
NOT_SEMANTIC = {"search", "device", "store_bytes", "study_dir"}

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class _Strict(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _increasing(rungs: tuple[int, ...]) -> tuple[int, ...]:
    """Return the rungs of a ladder.

    Raises:
        ValueError: If they do not increase.
    """
    if any(a >= b for a, b in pairwise(rungs)):
        raise ValueError(f"rungs must increase, got {rungs}")
    return rungs


class DataConfig(_Strict):
    """Text for calibration, search and held-out measurement; all sizes in tokens.

    ``corpus`` is ``pydoc`` (embedded), ``wikitext2``, ``c4``, ``ptb``, or a local ``.txt`` or
    ``.jsonl``. ``calibration`` is ``corpus`` (its calibration part), a data recipe such as
    ``selfgen-t1``, or ``mix:selfgen-t1`` (half the windows each); search and held-out text are
    always the corpus'. ``rungs`` are the sizes of the fidelity ladder, cheap to full.
    """

    corpus: str = "pydoc"
    calibration: str = DEFAULT_CALIBRATION
    window: Count = 512
    calibration_tokens: Count = 16384
    rungs: tuple[Count, ...] = Field(default=(1024, 4096, 16384), min_length=1)
    heldout_tokens: Count = 16384

    @field_validator("calibration")
    @classmethod
    def _known_text(cls, value: str) -> str:
        if value == DEFAULT_CALIBRATION:  # checked by a test; methods load torch
            return value
        return CalibrationText.parse(value).token()

    @model_validator(mode="after")
    def _sizes(self) -> "DataConfig":
        sizes = (self.calibration_tokens, *self.rungs, self.heldout_tokens)
        if any(size % self.window for size in sizes):
            raise ValueError(
                f"calibration_tokens, rungs and heldout_tokens must be multiples of the window "
                f"({self.window}), got {sizes}"
            )
        if self.calibration.startswith(MIX) and self.calibration_tokens < 2 * self.window:
            raise ValueError(
                f"calibration {self.calibration} needs two windows of {self.window}, one of each "
                f"kind: raise calibration_tokens ({self.calibration_tokens}), or set calibration "
                f"to {CORPUS}"
            )
        return self

    @field_validator("rungs")
    @classmethod
    def _increase(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _increasing(value)


class ObjectiveConfig(_Strict):
    """What is minimised beside bytes: KL to the base on the text, or the error on tasks.

    ``task_error`` is 1 less the accuracy, averaged over the examples of ``tasks``, such as
    ``arc_easy``. They are read from the hub, or from the files in ``data_dir``. ``rungs`` are the
    sizes of its fidelity ladder in examples, cheap to full, and ``heldout_examples`` are others,
    which decide between finalists; both shrink where the tasks have fewer.
    """

    metric: Literal["kl_nats", "task_error"] = KL
    tasks: tuple[str, ...] = ()
    data_dir: str | None = None
    rungs: tuple[Count, ...] = Field(default=(64, 256, 1024), min_length=1)
    heldout_examples: Count = 1024

    @field_validator("rungs")
    @classmethod
    def _increase(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _increasing(value)

    @model_validator(mode="after")
    def _tasks(self) -> "ObjectiveConfig":
        if self.metric == TASK_ERROR and not self.tasks:
            raise ValueError("task_error needs tasks: name them with --tasks, such as arc_easy")
        if self.metric == KL and self.tasks:
            raise ValueError(
                f"tasks are read by the metric task_error only, got {', '.join(self.tasks)}: give "
                "--objective task_error"
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"name every task once, got {', '.join(self.tasks)}")
        return self


class SpaceConfig(_Strict):
    """The search space by name, and option tokens that replace its defaults (``None`` keeps).

    Caches are searched when peak memory is the only budget, or when ``cache`` is given.
    ``variants`` are edits of the architecture that are searched beside the model as it is, such
    as ``flap-p80``: the MLPs with 80 % of their inner channels.
    """

    name: str = "joint"
    linear: tuple[str, ...] | None = Field(default=None, min_length=1)
    embedding: tuple[str, ...] | None = Field(default=None, min_length=1)
    bypass: bool | None = None
    cache: tuple[str, ...] | None = Field(default=None, min_length=1)
    variants: tuple[str, ...] = ()

    @field_validator("variants")
    @classmethod
    def _known_variants(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        tokens = tuple(variant_spec(token).token() for token in value)
        if len(set(tokens)) < len(tokens):
            raise ValueError("name every variant once")
        return tokens

    @model_validator(mode="after")
    def _known(self) -> "SpaceConfig":
        if self.name not in SPACES:
            raise ValueError(
                f"unknown search space {self.name!r}.{nearest(self.name, list(SPACES))} "
                f"Known: {', '.join(sorted(SPACES))}"
            )
        return self


class BudgetConfig(_Strict):
    """What a plan may cost: bytes of the weight file, peak memory at a context and batch."""

    max_bytes: Bytes | None = None
    max_memory: Bytes | None = None
    context: Count = 2048
    batch: Count = 1

    @property
    def memory_only(self) -> bool:
        """Whether peak memory is the only limit."""
        return self.max_bytes is None and self.max_memory is not None


class SearchConfig(_Strict):
    """How long the search goes on; changing these resumes or extends a study.

    ``baselines`` is the most uniform plans that are measured first. ``ladder`` is the number of
    budgets at which plans are sought, from the budget itself down to ``lowest_share`` of it, and
    ``at_budget`` the share of the refinements that goes to the largest. ``finish`` is what tunes
    the blocks of a finalist after the layer methods, or ``none``. ``sampler`` names what proposes
    plans, and ``moves`` the moves that it may make; empty allows all.
    """

    trials: Count = 60
    timeout_s: Seconds | None = None
    finalists: Count = 3
    finish: str = DEFAULT_FINISH
    baselines: Count = 8
    ladder: Count = 4
    lowest_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    at_budget: Annotated[float, Field(ge=0, le=1)] = 0.8
    sampler: str = "auto"
    moves: tuple[str, ...] = ()

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        if value not in SAMPLERS:
            raise ValueError(
                f"unknown sampler {value!r}.{nearest(value, list(SAMPLERS))} "
                f"Known: {', '.join(SAMPLERS)}"
            )
        return value

    @field_validator("finish")
    @classmethod
    def _known_finish(cls, value: str) -> str:
        if value != DEFAULT_FINISH:  # the default is checked by a test; methods load torch
            finish_spec(value)
        return value


class StudyConfig(_Strict):
    """Everything that defines a study; ``autocomp check --schema`` prints its JSON schema."""

    model: str
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    target: Literal["native"] = "native"
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    space: SpaceConfig = Field(default_factory=SpaceConfig)
    budget: BudgetConfig = BudgetConfig()
    search: SearchConfig = SearchConfig()
    store_bytes: Bytes = 20 * 10**9
    study_dir: str | None = None


def presets() -> dict[str, str]:
    """Return the shipped presets: name to YAML text."""
    files = resources.files(PRESETS).iterdir()
    return {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8")
        for item in sorted(files, key=lambda item: item.name)
        if item.name.endswith(".yaml")
    }


def load_config(
    source: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> StudyConfig:
    """Return the configuration: assignments over overrides over the file over defaults.

    Args:
        source: A YAML file or the name of a shipped preset; ``None`` for defaults only.
        overrides: Values by dotted key, ``{"budget.max_bytes": "80MB"}``; ``None`` is skipped.
        assignments: ``a.b=c`` texts of ``--set``; the right side is read as YAML.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown (with the nearest names), or a
            value is not allowed.
    """
    data = _read(source) if source is not None else {}
    for key, value in (overrides or {}).items():
        if value is not None:
            _put(data, key, value)
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r}: expected key=value, such as search.trials=20.")
        _put(data, key.strip(), _yaml(value, f"--set {text!r}"))
    if not data.get("model"):
        raise ConfigError(
            "no model given: name one (smollm2-135m is embedded; any Hugging Face id or folder "
            "works) or write 'model:' in the configuration file."
        )
    _refuse_unknown(data, StudyConfig, "")
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        where = "" if source is None else f" ({source})"
        raise ConfigError(f"configuration{where}: {_explain(error)}") from error


def fingerprint(config: StudyConfig) -> dict[str, Any]:
    """Return the settings that make two studies comparable, by dotted key.

    Left out: how long to search, where to compute and where files lie, empty lists, and what the
    objective does not read.
    """
    flat = _flatten(config.model_dump(mode="json", exclude=NOT_SEMANTIC))
    unread = set(ObjectiveConfig.model_fields) - {"metric"}
    if config.objective.metric == TASK_ERROR:
        unread = {"data_dir"}
    hidden = {f"objective.{name}" for name in unread}
    return {key: value for key, value in flat.items() if value != [] and key not in hidden}


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    elif str(source) in (shipped := presets()):
        text = shipped[str(source)]
    else:
        raise ConfigError(
            f"no configuration file {str(source)!r}, and no preset of that name."
            f"{nearest(str(source), list(shipped))} Presets: {', '.join(shipped)}."
        )
    data = _yaml(text, str(source))
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected a mapping of settings at the top level.")
    return data


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {parent!r} holds a value, not settings of its own.")
        data[parent] = data = dict(inner)
    data[last] = value


def _refuse_unknown(data: Mapping[str, Any], model: type[BaseModel], prefix: str) -> None:
    fields = model.model_fields
    for key, value in data.items():
        if key not in fields:
            raise ConfigError(
                f"unknown setting {prefix}{key!s}.{_suggest(str(key), fields)} "
                f"Allowed here: {', '.join(fields)}."
            )
        inner = fields[key].annotation
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            _refuse_unknown(value, inner, f"{prefix}{key}.")


def _suggest(key: str, fields: Mapping[str, Any]) -> str:
    """Return near names of this level, or the full path when the key exists one level down."""
    for section, info in StudyConfig.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and key in inner.model_fields:
            return f" Did you mean '{section}.{key}'?"
    close = difflib.get_close_matches(key, list(fields), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(repr(item) for item in close)}?" if close else ""


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "settings"
        message = item["msg"].removeprefix("Value error, ")
        got = item["input"]
        shown = "" if item["type"] == "missing" or isinstance(got, dict) else f" (got {got!r})"
        parts.append(f"{where}: {message}{shown}")
    return "; ".join(parts)
