"""The tasks by name: lm-eval's own definition, the adapter of local files, the headline figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autocomp.core.errors import ConfigError
from autocomp.core.registry import nearest
from autocomp.evaluate.tasks.arc import ARC_CHALLENGE, ARC_EASY
from autocomp.evaluate.tasks.boolq import BOOLQ
from autocomp.evaluate.tasks.hellaswag import HELLASWAG
from autocomp.evaluate.tasks.lambada import LAMBADA
from autocomp.evaluate.tasks.openbookqa import OPENBOOKQA
from autocomp.evaluate.tasks.piqa import PIQA
from autocomp.evaluate.tasks.sources import Adapter
from autocomp.evaluate.tasks.wikitext import WIKITEXT
from autocomp.evaluate.tasks.winogrande import WINOGRANDE


@dataclass(frozen=True, slots=True)
class Task:
    """A task of lm-eval.

    Args:
        definition: Its YAML file below lm-eval's folder of tasks.
        adapter: Reads local files.
        split: Part of the data set that is evaluated.
        headline: The accuracy that it is usually reported with; ``None`` where it has none.
    """

    definition: str
    adapter: Adapter
    split: Literal["validation", "test"]
    headline: str | None


TASKS: dict[str, Task] = {
    "lambada_openai": Task("lambada/lambada_openai.yaml", LAMBADA, "test", "acc"),
    "piqa": Task("piqa/piqa.yaml", PIQA, "validation", "acc"),
    "arc_easy": Task("arc/arc_easy.yaml", ARC_EASY, "test", "acc"),
    "arc_challenge": Task("arc/arc_challenge.yaml", ARC_CHALLENGE, "test", "acc_norm"),
    "hellaswag": Task("hellaswag/hellaswag.yaml", HELLASWAG, "validation", "acc_norm"),
    "winogrande": Task("winogrande/default.yaml", WINOGRANDE, "validation", "acc"),
    "openbookqa": Task("openbookqa/openbookqa.yaml", OPENBOOKQA, "test", "acc_norm"),
    "boolq": Task("super_glue/boolq/default.yaml", BOOLQ, "validation", "acc"),
    "wikitext": Task("wikitext/wikitext.yaml", WIKITEXT, "test", None),
}
SUITES = {"zero-shot": tuple(name for name, task in TASKS.items() if task.headline is not None)}


def task_names(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """Return task names with suites spelled out, each once, in the order given.

    Args:
        tasks: Names of tasks or suites; a text separates them by commas.

    Raises:
        ConfigError: If a name is unknown or there is none.
    """
    given = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    names: list[str] = []
    for name in (text.strip() for text in given):
        if name not in TASKS and name not in SUITES:
            known = [*SUITES, *TASKS]
            raise ConfigError(
                f"unknown task {name!r}.{nearest(name, known)} Known: {', '.join(known)}."
            )
        names += SUITES.get(name, (name,))
    if not names:
        raise ConfigError(f"no task was named. Known: {', '.join([*SUITES, *TASKS])}.")
    return tuple(dict.fromkeys(names))
