"""lm-eval around a model in memory: its task definitions, its model class, its output silenced."""

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.table import TASKS
from autocomp.models.attention import decode_attention


def definition(name: str) -> Path:
    """Return the file in which lm-eval defines a task.

    Raises:
        ConfigError: If lm-eval is not installed, or has no such file.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise ConfigError(
            f"tasks need lm-eval, which cannot be imported ({error}): pip install 'autocomp[eval]'"
        ) from error
    path = Path(str(lm_eval.__file__)).parent / "tasks" / TASKS[name].definition
    if not path.is_file():
        raise ConfigError(
            f"lm-eval {lm_eval.__version__} defines {name} elsewhere than in {path}; install a "
            "version that autocomp knows: pip install 'autocomp[eval]'"
        )
    return path


def load_tasks(definitions: Mapping[str, Path]) -> dict[str, Any]:
    """Return lm-eval's task objects by name, with their data.

    Args:
        definitions: YAML file of each task.

    Raises:
        ConfigError: If the data cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    manager, tasks = TaskManager(include_defaults=False), {}
    for name, path in definitions.items():
        try:
            tasks[name] = manager.load([str(path)])["tasks"][name]
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"the data of {name} cannot be loaded: {error} Check the network and "
                "HF_HUB_OFFLINE, or give local files (--data-dir)."
            ) from error
    return tasks


class Forward:
    """A model as lm-eval calls it: token ids in, logits out, caches as in decoding.

    It is no torch module, so that lm-eval neither ties nor moves weights, which packed ones cannot
    follow.

    Args:
        model: Dense, packed, or a live candidate.
        advance: Told how many tokens were read.
    """

    def __init__(
        self, model: PreTrainedModel, advance: Callable[[int], None] | None = None
    ) -> None:
        self.model = model
        self.config = model.config
        self.device = model.device
        self.advance = advance
        self.tokens = 0

    def __call__(self, input_ids: Tensor) -> Any:
        """Return the model's output for (batch, length) ids."""
        self.tokens += input_ids.numel()
        if self.advance is not None:
            self.advance(input_ids.numel())
        with decode_attention(self.model):
            return self.model(input_ids=input_ids, use_cache=False)


def language_model(forward: Forward, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    """Return lm-eval's model around one in memory.

    Args:
        forward: The model.
        tokenizer: Its tokenizer; not changed.
        batch_size: Requests a forward pass.
    """
    from lm_eval.models.huggingface import HFLM

    given: dict[str, Any] = {"pretrained": forward, "tokenizer": deepcopy(tokenizer)}
    return HFLM(**given, batch_size=batch_size)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide lm-eval's bars and prints, and its remarks on what a task or a call leaves out."""
    shown, logger = tqdm.__init__, logging.getLogger("lm_eval")
    level = logger.level

    def hidden(bar: Any, *args: Any, **options: Any) -> None:
        shown(bar, *args, **options | {"disable": True})

    tqdm.__init__ = hidden
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.__init__ = shown
        logger.setLevel(level)
