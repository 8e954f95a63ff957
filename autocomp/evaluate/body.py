"""The body of a decoder over fixed windows, for one plan after another.

Plans that follow one another in a search agree in many blocks, and most often in the first ones.
So the hidden states at a few block boundaries are kept, each under a digest of everything in front
of it, and whichever plan has the same digest there goes on from it: the blocks that would make the
state once more are skipped. Nothing is approximate; a state is used for the batch of windows that
it was made of, because the rounding of matrix products may depend on the size of the batch.

The blocks are not compiled: ``torch.compile`` does not look for hooks that come later, so that it
would leave out the input step of a linear; ``studies/throughput`` says what it would gain.
"""

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autocomp.core.errors import ConfigError, PlanError
from autocomp.core.plan import Plan
from autocomp.core.sketch import DTYPE_BYTES, Sketch
from autocomp.core.spec import DENSE
from autocomp.cost.bytes import is_bypassed
from autocomp.cost.memory import LOGIT_BYTES, activation_bytes
from autocomp.evaluate.head import CHUNK_TOKENS, final_hidden
from autocomp.models.device import memory_bytes
from autocomp.models.structure import decoder_blocks

logger = logging.getLogger(__name__)

PASS_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens of a forward pass beyond which it is not faster."""

MEMORY_SHARE = 0.5
"""Share of a card's memory for weights and one pass; the rest is for what is kept."""

LIVE = 3
"""How often the widest activations, or logits, exist at once: input, output, one step between."""

PLANS = 4
"""Plans whose states are kept at once: one that others are made from, and the last of those."""

Output = Tensor | tuple[Tensor]
"""What a block returns: a hidden state, in a tuple in some releases of transformers."""

Key = tuple[str, tuple[int, ...]]
"""Digest of what makes a state, and the windows of the batch."""


def plan_states(sketch: Sketch, plan: Plan) -> tuple[str, ...]:
    """Return a digest of what computes the hidden state at every block boundary.

    ``s_0 = H(variant, recovery, embedding)`` and ``s_{i+1} = H(s_i, specs of block i)``. Specs of
    what lies in a bypassed sub-block do not count, and neither does an untied head.

    Args:
        sketch: The model.
        plan: The plan, in weights that follow from its specs alone.

    Returns:
        One digest more than there are blocks.
    """
    parts = [[plan.variant, plan.recovery or ""], *([] for _ in range(sketch.num_layers))]
    for site in sketch.sites:
        inert = site.kind == "head" or is_bypassed(sketch, plan, site.name)
        if not inert and plan[site.name] != DENSE:
            parts[site.block + 1].append(f"{site.name}={plan[site.name].token()}")
    digests = [""]
    for part in parts:
        text = "\n".join([digests[-1], *part])
        digests.append(hashlib.sha256(text.encode()).hexdigest())
    return tuple(digests[1:])


def batch_windows(sketch: Sketch, length: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return how many windows a forward pass reads: what is fast and fits, at least one.

    The same for the same machine whatever else it does, so that a resumed study computes the same
    bits. On a processor memory sets no limit, because few tokens are as fast as many.

    Args:
        sketch: The model.
        length: Tokens a window.
        device: Where the body runs.
        dtype: Dtype that it computes in.
    """
    fast = PASS_TOKENS[device.type] // length
    if device.type == "cuda":
        weights = sum(math.prod(site.shape) for site in sketch.weights()) * dtype.itemsize
        logits = LIVE * CHUNK_TOKENS * sketch.vocab_size * LOGIT_BYTES
        wider = dtype.itemsize / DTYPE_BYTES[sketch.dtype]
        window = LIVE * wider * activation_bytes(sketch, context=length, batch=1)
        fast = min(fast, int((MEMORY_SHARE * memory_bytes(device) - weights - logits) // window))
    return max(1, fast)


class KeptStates:
    """What blocks returned, the least recently used forgotten first.

    Args:
        max_bytes: Limit of what is kept, bytes on the device that computed it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._outputs: OrderedDict[Key, Output] = OrderedDict()

    def get(self, key: Key) -> Output | None:
        """Return a kept output."""
        if key in self._outputs:
            self._outputs.move_to_end(key)
        return self._outputs.get(key)

    def put(self, key: Key, output: Output) -> None:
        """Keep an output, unless it alone is too large."""
        size = _hidden(output).nbytes
        if key in self._outputs or size > self.max_bytes:
            return
        while self.nbytes + size > self.max_bytes:
            _, dropped = self._outputs.popitem(last=False)
            self.nbytes -= _hidden(dropped).nbytes
        self._outputs[key] = output
        self.nbytes += size


class Body:
    """Runs models over fixed windows and goes on from hidden states that earlier runs left.

    Args:
        windows: (n, length) token ids.
        batch_size: Windows a forward pass.
        keep_bytes: Limit of the hidden states that are kept, bytes; 0 keeps none. They are those
            at evenly spread boundaries, as many as leave room for several plans.

    When a pass does not fit the memory, both are halved for good.
    """

    def __init__(self, windows: Tensor, *, batch_size: int, keep_bytes: int = 0) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.kept = KeptStates(keep_bytes)

    def hidden(
        self, model: PreTrainedModel, indices: Sequence[int], state: Sequence[str] | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the head's inputs, pass by pass, in the order of the windows.

        Args:
            model: A decoder in the state that it is to be run in.
            indices: Numbers of windows.
            state: A digest of what computes the hidden state at every block boundary, as from
                :func:`plan_states`; equal digests must mean equal bits, in whatever model. Without
                it every block runs and nothing is kept.

        Yields:
            The windows of a pass, and their states (windows, length, hidden) as of
            :func:`~autocomp.evaluate.head.final_hidden`.

        Raises:
            ConfigError: If a single window does not fit the memory.
            PlanError: If the model has another number of blocks.
        """
        waiting = list(indices)
        while waiting:
            chosen = waiting[: self.batch_size]
            found = self._attempt(model, chosen, state)
            if found is not None:
                yield chosen, found
                waiting = waiting[len(chosen) :]

    def boundaries(self, model: PreTrainedModel) -> list[int]:
        """Return the boundaries at which states are kept; ``k`` lies in front of block ``k``."""
        count = model.config.num_hidden_layers
        state = self.windows.numel() * model.config.hidden_size * model.dtype.itemsize
        places = min(count, self.kept.max_bytes // (PLANS * state))
        return sorted({round(count * i / (places + 1)) for i in range(1, places + 1)} - {0})

    def _attempt(
        self, model: PreTrainedModel, chosen: list[int], state: Sequence[str] | None
    ) -> Tensor | None:
        """Return the states of a pass; ``None`` when it has to be tried again with less."""
        try:
            return self._run(model, chosen, state)
        except torch.OutOfMemoryError as error:
            if len(chosen) == 1:
                raise ConfigError(
                    f"a window of {self.windows.shape[1]} tokens does not fit the memory of "
                    f"{model.device}; use shorter windows (data.window) or another device."
                ) from error
        self.kept = KeptStates(self.kept.max_bytes // 2)
        self.batch_size = len(chosen) // 2
        logger.warning("out of memory; going on with %d windows a pass", self.batch_size)
        return None

    def _run(
        self, model: PreTrainedModel, chosen: list[int], state: Sequence[str] | None
    ) -> Tensor:
        """Return the states of a pass, from the deepest kept boundary on."""
        if state is None:
            return final_hidden(model, self.windows[chosen])
        blocks = decoder_blocks(model)
        if len(state) != len(blocks) + 1:
            raise PlanError(
                f"{len(state)} states of a plan were given for {len(blocks)} blocks; give one for "
                "every block's input and one for the last block's output."
            )
        keys = {k: (state[k], tuple(chosen)) for k in self.boundaries(model)}
        with ExitStack() as changes:
            for boundary, key in reversed(keys.items()):
                output = self.kept.get(key)
                if output is not None:
                    changes.enter_context(_skipped(blocks[:boundary], output))
                    break
                hook = _keep_hook(self.kept, key)
                changes.callback(blocks[boundary - 1].register_forward_hook(hook).remove)
            return final_hidden(model, self.windows[chosen])


def _hidden(output: Output) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _keep_hook(kept: KeptStates, key: Key) -> Callable[[nn.Module, Any, Any], None]:
    """Return a forward hook that keeps a block's hidden state."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        kept.put(key, output[:1] if isinstance(output, tuple) else output)

    return hook


@contextmanager
def _skipped(blocks: Sequence[nn.Module], output: Output) -> Iterator[None]:
    """Let blocks return an output without computing anything, the first ones too."""
    try:
        for block in blocks:
            block.forward = lambda *_, **__: output  # in the instance, in front of its class'
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
