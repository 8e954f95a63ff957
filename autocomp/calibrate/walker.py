"""Run a causal LM one decoder block at a time.

The walker feeds windows through the embedding once, keeps what reaches the first block, and then
applies blocks singly; memory is one hidden state a token and block plus whatever the hooks
collect.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.models.arguments import CACHE_NAMES
from autocomp.models.structure import Structure
from autocomp.models.wiring import trace


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of a block for some windows.

    Args:
        hidden: (windows, length, hidden) in the model's compute dtype.
        arguments: Every block's other arguments (masks, positions, rotary tables), positional and
            named, without a cache; they differ where layers attend differently.
    """

    hidden: Tensor
    arguments: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]

    def with_hidden(self, hidden: Tensor) -> "Batch":
        """Return the batch with another hidden state."""
        return Batch(hidden, self.arguments)


class BlockWalker:
    """Walks ``model`` over fixed windows.

    Args:
        layout: A causal LM in evaluation mode; its weights may be swapped between calls.
        windows: (n, length) token ids.
        batch_size: Windows a batch.
    """

    def __init__(self, layout: Structure, windows: Tensor, batch_size: int = 4) -> None:
        self.model = layout.model
        self.layout = layout
        self.windows = windows
        self.batch_size = batch_size

    @cached_property
    def outputs(self) -> dict[str, nn.Module]:
        """By sub-block, the module whose output it adds to the residual stream."""
        outputs = trace(self.layout).outputs
        return {name: self.layout.get(module) for name, module in outputs.items()}

    @torch.no_grad()
    def first_inputs(self) -> list[Batch]:
        """Return the inputs of block 0 for every batch; no block computes anything."""
        batches: list[Batch] = []
        device = next(self.model.parameters()).device
        for start in range(0, len(self.windows), self.batch_size):
            ids = self.windows[start : start + self.batch_size].to(device)
            with _recorded_calls(self.layout.blocks) as calls:
                self.model.base_model(input_ids=ids, use_cache=False)
            (hidden, *_), _ = calls[0]
            rest = [
                (args[1:], {key: kwargs[key] for key in kwargs if key not in CACHE_NAMES})
                for args, kwargs in calls
            ]
            batches.append(Batch(hidden, rest))
        return batches

    def run_block(self, index: int, batch: Batch) -> Tensor:
        """Return the output hidden state of block ``index``: (windows, length, hidden)."""
        args, kwargs = batch.arguments[index]
        output = self.layout.blocks[index](batch.hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def advance(self, index: int, batches: Sequence[Batch]) -> list[Batch]:
        """Return the inputs of the next block."""
        return [batch.with_hidden(self.run_block(index, batch)) for batch in batches]

    def walk(self) -> Iterator[tuple[int, list[Batch]]]:
        """Yield (block index, its inputs) in order; weights changed by the caller take effect."""
        batches = self.first_inputs()
        for index in range(len(self.layout.blocks)):
            yield index, batches
            batches = self.advance(index, batches)


@contextmanager
def _recorded_calls(
    blocks: Sequence[nn.Module],
) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Collect the arguments of every block, each of which returns its hidden state as it is."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(((hidden_states, *args), kwargs))
        return hidden_states

    try:
        for block in blocks:
            block.forward = record  # in the instance, in front of the method of its class
        yield calls
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


@contextmanager
def watch_inputs(
    modules: Mapping[str, nn.Module], seen: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call ``seen(name, rows)`` with the (tokens, in) inputs of each module in the context.

    These are the inputs that a module is given, before an input step of its own changes them.
    """

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen(name, args[0].detach().flatten(0, -2))

        return hook

    handles = [
        module.register_forward_pre_hook(hook_for(name), prepend=True)
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch_outputs(
    modules: Mapping[str, nn.Module], seen: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call ``seen(name, output, gradient)``, both (tokens, out), during the backward pass."""

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor: Tensor = output[0] if isinstance(output, tuple) else output
            rows = tensor.detach().flatten(0, -2)

            def on_gradient(gradient: Tensor) -> None:
                seen(name, rows, gradient.detach().flatten(0, -2))

            tensor.register_hook(on_gradient)

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
