"""The command line's verbs as functions.

>>> from autocomp import api
>>> estimate = api.check("smollm2-135m", max_bytes="80MB")  # doctest: +SKIP
>>> result = api.search("smollm2-135m", max_bytes="80MB", study_dir="runs/80mb")  # doctest: +SKIP
>>> api.export("runs/80mb", result.best.number, "my-model")  # doctest: +SKIP
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocomp.config import StudyConfig, load_config
from autocomp.core.progress import Progress, Silent
from autocomp.evaluate import Measurement, TaskRequest, TextRequest, evaluate_path
from autocomp.export import ExportReport, export_model
from autocomp.layers.native import load
from autocomp.search.estimate import Estimate, estimate
from autocomp.search.explain import PlanTable, show_trial
from autocomp.search.recover import Recovery, recover_trial
from autocomp.search.result import SearchResult, summarise
from autocomp.search.run import compress_uniform, finish_trial, load_study_config, run_search
from autocomp.search.study import Study

__all__ = [
    "Measurement",
    "TaskRequest",
    "TextRequest",
    "check",
    "compress",
    "evaluate",
    "export",
    "front",
    "load",
    "recover",
    "search",
    "show",
]

evaluate = evaluate_path


def configure(
    model: str,
    *,
    max_bytes: int | str | None = None,
    max_memory: int | str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> StudyConfig:
    """Return a configuration.

    Args:
        model: Embedded model, Hugging Face id or local folder.
        max_bytes: Budget of the weight file, bytes or a size such as ``80MB``.
        max_memory: Budget of peak memory at ``budget.context`` and ``budget.batch``.
        settings: Any other setting by dotted key, such as ``{"search.trials": 90}``.
    """
    budget = {"model": model, "budget.max_bytes": max_bytes, "budget.max_memory": max_memory}
    return load_config(None, budget | dict(settings or {}))


def check(
    model: str,
    *,
    max_bytes: int | str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Estimate:
    """Return what a search would take, reading no weights. See :func:`configure`."""
    return estimate(configure(model, max_bytes=max_bytes, settings=settings))


def search(
    model: str,
    *,
    study_dir: str | Path,
    max_bytes: int | str | None = None,
    max_memory: int | str | None = None,
    settings: Mapping[str, Any] | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search, or resume the search in ``study_dir``. See :func:`configure`.

    Args:
        model: Embedded model, Hugging Face id or local folder.
        study_dir: Where the study and its artefacts live.
        max_bytes: Budget of the weight file.
        max_memory: Budget of peak memory.
        settings: Any other setting by dotted key.
        storage: Storage URL; ``None`` is a journal file in ``study_dir``.
        progress: Listener; silent by default.

    Raises:
        InfeasibleError: If the budget cannot be reached.
        ConfigError: If a name is unknown or the study was made with other settings.
    """
    config = configure(model, max_bytes=max_bytes, max_memory=max_memory, settings=settings)
    return run_search(
        config, study_dir=Path(study_dir), storage=storage, progress=progress or Silent()
    )


def front(study_dir: str | Path, storage: str | None = None) -> SearchResult:
    """Return the state of a study: best plans, front, families."""
    return summarise(Study.open_existing(storage or Path(study_dir)), Path(study_dir))


def show(study_dir: str | Path, trial: int, storage: str | None = None) -> PlanTable:
    """Return a trial layer by layer, with the marginal cost of every alternative."""
    return show_trial(Path(study_dir), storage, trial)


def recover(
    study_dir: str | Path,
    trial: int,
    method: str = "lora-r8-120",
    *,
    storage: str | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Train a trial's codes and scales with KL to the base; formats and bytes stay.

    Args:
        study_dir: The study.
        trial: Trial number; finished first if it is not.
        method: Token of what is trained and for how many steps.
        storage: Storage URL; ``None`` is the journal file in ``study_dir``.
        progress: Listener; silent by default.

    Returns:
        The artefact before and after, measured on held-out text; exports take the better one.
    """
    return recover_trial(Path(study_dir), storage, trial, method, progress or Silent())


def export(
    study_dir: str | Path,
    trial: int,
    out: str | Path,
    *,
    format: str = "native",
    storage: str | None = None,
    force: bool = False,
) -> ExportReport:
    """Finish a trial if it is not, and write it as a folder; reloaded and compared first.

    Args:
        study_dir: The study.
        trial: Trial number.
        out: Folder to write.
        format: ``native`` (packed) or ``hf`` (dense, loads in plain transformers).
        storage: Storage URL; ``None`` is the journal file in ``study_dir``.
        force: Replace a folder that is not empty.

    Raises:
        ExportError: If the folder is occupied or the result differs from the artefact.
    """
    place = Path(study_dir)
    done = finish_trial(place, storage, trial, Silent())
    source = load_study_config(place).model
    return export_model(
        place / done.artefact, Path(out), format=format, base_model=source, force=force
    )


def compress(
    model: str,
    out: str | Path,
    *,
    linear: str,
    embedding: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Compress every linear with one spec, without a search, into a native folder.

    Args:
        model: Embedded model, Hugging Face id or local folder.
        out: Folder to write.
        linear: Token for the linears, such as ``gptq-w4g64``.
        embedding: Token for embedding and head; ``None`` leaves them dense.
        settings: Settings of the data by dotted key, and ``search.finish``.
    """
    return compress_uniform(
        configure(model, settings=settings),
        linear=linear,
        embedding=embedding,
        out=Path(out),
        progress=Silent(),
    )
