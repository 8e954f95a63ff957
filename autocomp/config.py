"""The study configuration: one frozen, strict model, read from YAML and the command line."""

from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from autocomp.core.allocation import DEFAULT_ALLOCATIONS, allocation_tokens
from autocomp.core.cost import LIMITS, MODELLED, TIMES, WEIGHT_BYTES
from autocomp.core.errors import ConfigError
from autocomp.core.finish import DEFAULT_FINISH, finish_spec
from autocomp.core.metric import KL, TASK_ERROR
from autocomp.core.recipe import CORPUS, DEFAULT_CALIBRATION, MIX, CalibrationText
from autocomp.core.registry import DRIVERS, SAMPLERS, SCORES, SPACES, nearest
from autocomp.core.settings import explain, flatten, parse_yaml, put, refuse_unknown
from autocomp.core.units import parse_bytes, parse_duration, parse_flops
from autocomp.core.variant import variant_spec

PRESETS = "autocomp.search_spaces.presets"
_LATER = {
    "budget.max_decode_ms": None,
    "budget.max_prefill_ms": None,
    "budget.times": MODELLED,
    "budget.max_flops": None,
    "objective.cost": WEIGHT_BYTES,
    "space.tied": False,
}
NOT_SEMANTIC = {"search", "device", "store_bytes", "study_dir"}

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Flops = Annotated[int, BeforeValidator(parse_flops), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Allocations = Annotated[tuple[str, ...], AfterValidator(allocation_tokens)]


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
    """A loss and a cost that are minimised together.

    ``kl_nats`` is the KL to the base on the text, ``perplexity`` that of the text itself;
    ``task_error`` is 1 less the accuracy, averaged over the examples of ``tasks``, such as
    ``arc_easy``. They are read from the hub, or from the files in ``data_dir``. ``rungs`` are the
    sizes of its fidelity ladder in examples, cheap to full, and ``heldout_examples`` are others,
    which decide between finalists; both shrink where the tasks have fewer. ``cost`` is the second
    axis of the front: bytes of the weight file, peak memory, time of decoding a token or reading
    the context, or operations of decoding a token, for the context, batch and device of the
    budget.
    """

    metric: Literal["kl_nats", "perplexity", "task_error"] = KL
    cost: Literal["weight_bytes", "peak_memory_bytes", "decode_ms", "prefill_ms", "flops"] = (
        WEIGHT_BYTES
    )
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
        if self.metric != TASK_ERROR and self.tasks:
            raise ValueError(
                f"tasks are read by the metric task_error only, got {', '.join(self.tasks)}: give "
                "--objective task_error"
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"name every task once, got {', '.join(self.tasks)}")
        return self


class SpaceConfig(_Strict):
    """The search space by name, and option tokens that replace its defaults (``None`` keeps).

    Caches are searched when peak memory is limited or minimised, or when ``cache`` is given.
    ``variants`` are edits of the architecture that are searched beside the model as it is, such
    as ``flap-p80``: the MLPs with 80 % of their inner channels. ``tied`` gives the linears of a
    sub-block that read the same input (q/k/v, gate/up) one decision, as servers need that fuse
    them.
    """

    name: str = "joint"
    linear: tuple[str, ...] | None = Field(default=None, min_length=1)
    embedding: tuple[str, ...] | None = Field(default=None, min_length=1)
    bypass: bool | None = None
    cache: tuple[str, ...] | None = Field(default=None, min_length=1)
    variants: tuple[str, ...] = ()
    tied: bool = False

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
    """What a plan may cost, of any of five: every limit that is given holds.

    Bytes of the weight file; peak memory at a context and batch; milliseconds of decoding one
    token of every sequence there, and of reading every context, on a ``device`` (``autocomp ls
    devices``); operations of decoding one token, such as ``200M``. ``times`` are ``modelled`` by a
    roofline, ``measured`` (``autocomp bench``), or ``mixed``: measured, with scaled rooflines for
    what was not.
    """

    max_bytes: Bytes | None = None
    max_memory: Bytes | None = None
    max_decode_ms: Annotated[float, Field(gt=0)] | None = None
    max_prefill_ms: Annotated[float, Field(gt=0)] | None = None
    max_flops: Flops | None = None
    context: Count = 2048
    batch: Count = 1
    device: str = "h100"
    times: Literal["modelled", "measured", "mixed"] = MODELLED

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are given, by name of the cost."""
        given = {cost: getattr(self, field) for cost, field in LIMITS.items()}
        return {cost: limit for cost, limit in given.items() if limit is not None}


class ResourceConfig(_Strict):
    """What one worker gets: cores, which are its threads, and a share of a GPU.

    What is not given is an equal share of this machine's.
    """

    cpus: Count | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None

    @field_validator("gpus")
    @classmethod
    def _shared_or_whole(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError(f"a worker gets a share of one GPU, or whole ones, got {value}")
        return value


class SearchConfig(_Strict):
    """How long the search goes on; changing these resumes or extends a study.

    ``baselines`` is the most uniform plans that are measured first. ``ladder`` is the number of
    budgets at which plans are sought, from the budget itself down to ``lowest_share`` of it, and
    ``at_budget`` the share of the refinements that goes to the largest. ``finish`` is what tunes
    the blocks of a finalist after the layer methods, or ``none``; ``gptaq`` in front of it, or
    alone, compresses towards the dense model. ``finalists`` plans are finished
    at each of the ``finish_budgets`` largest budgets of the ladder, and up to ``more_finalists``
    others where finished results contradict searched ones. ``sampler`` names what proposes
    plans, and ``moves`` the moves that it may make; empty allows all. ``allocations`` are the
    methods whose plans are among the first where the space has masks or ranks (``autocomp ls
    allocations``); empty leaves them out. ``warm_from`` names the directories of other studies,
    whose corrections of the scores this one starts from.
    ``workers`` processes measure plans at a time; ``driver`` is ``inline`` (this process, one
    worker) or ``ray``, and follows from ``workers`` when not given. ``score`` names what predicts
    the loss of an option before anything is measured.
    """

    trials: Count = 60
    timeout_s: Seconds | None = None
    finalists: Count = 3
    finish_budgets: Count = 1
    more_finalists: Annotated[int, Field(ge=0)] = 2
    finish: str = DEFAULT_FINISH
    baselines: Count = 8
    ladder: Count = 4
    lowest_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    at_budget: Annotated[float, Field(ge=0, le=1)] = 0.8
    score: Annotated[str, AfterValidator(SCORES.check)] = "kronecker"
    sampler: Annotated[str, AfterValidator(SAMPLERS.check)] = "auto"
    moves: tuple[str, ...] = ()
    allocations: Allocations = DEFAULT_ALLOCATIONS
    warm_from: tuple[str, ...] = ()
    workers: Count = 1
    driver: str | None = None
    resources: ResourceConfig = ResourceConfig()

    @property
    def driver_name(self) -> str:
        """Name of the driver: the chosen one, or what the number of workers needs."""
        return self.driver or ("inline" if self.workers == 1 else "ray")

    @model_validator(mode="after")
    def _known_driver(self) -> "SearchConfig":
        if self.driver_name not in DRIVERS:
            raise ValueError(
                f"unknown driver {self.driver!r}.{nearest(self.driver_name, list(DRIVERS))} "
                f"Known: {', '.join(DRIVERS)}"
            )
        if self.driver == "inline" and self.workers > 1:
            raise ValueError(
                f"the driver inline is one worker, this process, got workers {self.workers}: "
                "take the driver ray"
            )
        return self

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
            put(data, key, value)
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r}: expected key=value, such as search.trials=20.")
        put(data, key.strip(), parse_yaml(value, f"--set {text!r}"))
    if not data.get("model"):
        raise ConfigError(
            "no model given: name one (smollm2-135m is embedded; any Hugging Face id or folder "
            "works) or write 'model:' in the configuration file."
        )
    refuse_unknown(data, StudyConfig)
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        where = "" if source is None else f" ({source})"
        raise ConfigError(f"configuration{where}: {explain(error)}") from error


def fingerprint(config: StudyConfig) -> dict[str, Any]:
    """Return the settings that make two studies comparable, by dotted key.

    Left out: how long to search, where to compute and where files lie, empty lists, what neither
    loss nor costs read, and settings of later versions that are not used, so that studies stay
    open to them.
    """
    flat = flatten(config.model_dump(mode="json", exclude=NOT_SEMANTIC))
    unread = set(ObjectiveConfig.model_fields) - {"metric", "cost"}
    if config.objective.metric == TASK_ERROR:
        unread = {"data_dir"}
    hidden = {f"objective.{name}" for name in unread}
    hidden |= {key for key, unused in _LATER.items() if flat.get(key) == unused}
    if not set(TIMES) & {config.objective.cost, *config.budget.limits}:
        hidden |= {"budget.device", "budget.times"}
    return {key: value for key, value in flat.items() if value != [] and key not in hidden}


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
    data = parse_yaml(text, str(source))
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected a mapping of settings at the top level.")
    return data
