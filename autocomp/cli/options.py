"""Options that commands share: small dataclasses, expanded into one CLI parameter a field."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Argument, Option

from autocomp.config import StudyConfig, load_config


@dataclass(frozen=True)
class Source:
    """Where the configuration comes from."""

    model: Annotated[
        str | None, Argument(help="Hugging Face id, local folder, or the embedded smollm2-135m.")
    ] = None
    config: Annotated[
        str | None, Option("--config", "-c", help="Study YAML, or a preset: default, demo.")
    ] = None
    seed: Annotated[int | None, Option(help="Seed of every random choice.")] = None
    device: Annotated[str | None, Option(help="auto, cpu, cuda or cuda:N.")] = None
    assign: Annotated[
        list[str] | None, Option("--set", metavar="A.B=C", help="Set any configuration key.")
    ] = None


@dataclass(frozen=True)
class Budget:
    """What a plan may cost."""

    max_bytes: Annotated[
        str | None,
        Option(help="Weight file: 80MB, 80MiB.", rich_help_panel="Budget", metavar="SIZE"),
    ] = None
    max_memory: Annotated[
        str | None,
        Option(
            help="Peak memory: weights, KV cache, activations.",
            rich_help_panel="Budget",
            metavar="SIZE",
        ),
    ] = None
    max_decode_ms: Annotated[
        float | None,
        Option(
            help="Decoding a token of every sequence on --cost-device.",
            rich_help_panel="Budget",
            metavar="MS",
        ),
    ] = None
    max_prefill_ms: Annotated[
        float | None,
        Option(
            help="Reading the context of every sequence on --cost-device.",
            rich_help_panel="Budget",
            metavar="MS",
        ),
    ] = None
    max_flops: Annotated[
        str | None,
        Option(
            help="Operations of decoding a token: 200M.",
            rich_help_panel="Budget",
            metavar="COUNT",
        ),
    ] = None
    context: Annotated[
        int | None,
        Option(help="Tokens of context for memory, time, operations.", rich_help_panel="Budget"),
    ] = None
    batch: Annotated[
        int | None, Option(help="Sequences for memory and time.", rich_help_panel="Budget")
    ] = None
    cost_device: Annotated[
        str | None,
        Option(help="Device of times (autocomp ls devices).", rich_help_panel="Budget"),
    ] = None
    times: Annotated[
        str | None,
        Option(
            help="modelled (roofline), measured (autocomp bench), or mixed: scaled rooflines for "
            "what was not measured.",
            rich_help_panel="Budget",
        ),
    ] = None


@dataclass(frozen=True)
class Goal:
    """What is minimised."""

    objective: Annotated[
        str | None,
        Option(
            help="kl_nats (to the base), perplexity, or task_error of --tasks.",
            rich_help_panel="Goal",
        ),
    ] = None
    cost: Annotated[
        str | None,
        Option(
            help="Second axis: weight_bytes, peak_memory_bytes, decode_ms, prefill_ms, flops.",
            rich_help_panel="Goal",
        ),
    ] = None
    tasks: Annotated[
        str | None,
        Option(help="Tasks to search by: arc_easy,piqa.", rich_help_panel="Goal", metavar="A,B"),
    ] = None
    data_dir: Annotated[
        str | None,
        Option(help="Files of the tasks; else the hub.", rich_help_panel="Goal", metavar="DIR"),
    ] = None


@dataclass(frozen=True)
class Space:
    """What may be chosen, and where it must load."""

    space: Annotated[str | None, Option(help="Search space (autocomp ls spaces).")] = None
    target: Annotated[str | None, Option(help="Where the result must load: native.")] = None
    data: Annotated[str | None, Option(help="Corpus name, .txt or .jsonl (autocomp ls data).")] = (
        None
    )
    calibration: Annotated[
        str | None, Option(help="corpus, or a data recipe: selfgen-t1, mix:selfgen-t1.")
    ] = None


@dataclass(frozen=True)
class Length:
    """How long to search."""

    trials: Annotated[
        int | None,
        Option(help="Total of the study: re-running resumes, a larger number extends."),
    ] = None
    timeout: Annotated[str | None, Option(help="Stop proposing after 30m, 2h, 90s.")] = None
    finalists: Annotated[int | None, Option(help="Plans to finish and measure held out.")] = None
    finish: Annotated[
        str | None,
        Option(help="What tunes the finalists' blocks: [gptaq+]signround-STEPS, gptaq or none."),
    ] = None
    workers: Annotated[
        int | None, Option(help="Processes that measure plans at a time; more than one use Ray.")
    ] = None
    driver: Annotated[
        str | None, Option(help="inline (this process) or ray; follows from --workers.")
    ] = None


@dataclass(frozen=True)
class Place:
    """Where the study lives."""

    study_dir: Annotated[
        Path | None, Option(help="Study directory; runs/MODEL when not given.")
    ] = None
    storage: Annotated[
        str | None,
        Option(help="Optuna storage URL; else AUTOCOMP_STORAGE, OPTUNA_STORAGE, the directory."),
    ] = None


@dataclass(frozen=True)
class Output:
    """How to answer."""

    json: Annotated[bool, Option("--json", help="Only JSON on standard output.")] = False
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress.")] = False


def study_config(
    source: Source,
    budget: Budget | None = None,
    space: Space | None = None,
    length: Length | None = None,
    goal: Goal | None = None,
) -> StudyConfig:
    """Return the configuration: command line over file over defaults.

    Raises:
        ConfigError: As :func:`autocomp.config.load_config`.
    """
    budget, space, length = budget or Budget(), space or Space(), length or Length()
    goal = goal or Goal()
    overrides = {
        "model": source.model,
        "seed": source.seed,
        "device": source.device,
        "target": space.target,
        "space.name": space.space,
        "data.corpus": space.data,
        "data.calibration": space.calibration,
        "objective.metric": goal.objective,
        "objective.cost": goal.cost,
        "objective.tasks": goal.tasks and tuple(map(str.strip, goal.tasks.split(","))),
        "objective.data_dir": goal.data_dir,
        "search.trials": length.trials,
        "search.timeout_s": length.timeout,
        "search.finalists": length.finalists,
        "search.finish": length.finish,
        "search.workers": length.workers,
        "search.driver": length.driver,
    } | budget_settings(budget)
    return load_config(source.config, overrides, source.assign or ())


def budget_settings(budget: Budget) -> dict[str, Any]:
    """Return the settings of a budget by dotted key, ``None`` for those that were not given."""
    given = dataclasses.asdict(budget)
    settings = {"budget.device": given.pop("cost_device")}
    return settings | {f"budget.{key}": value for key, value in given.items()}


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter whose type is a dataclass of options by that dataclass' fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind))
            continue
        groups[parameter.name] = kind  # type: ignore[assignment]
        inner = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=inner[field.name],
            )
            for field in dataclasses.fields(kind)
        ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{f.name: values.pop(f.name) for f in dataclasses.fields(kind)})
        command(**values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
