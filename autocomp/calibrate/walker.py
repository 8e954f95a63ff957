"""Run a causal LM one decoder block at a time.

The walker feeds windows through the embedding once, keeps what reaches the first block, and then
applies blocks singly; memory is one hidden state a token and block plus whatever the hooks
collect.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.models.structure import Structure


class _FirstBlockReached(Exception):
    """Ends the forward pass once the first block's inputs are known."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of a block for some windows.

    Args:
        hidden: (windows, length, hidden) in the model's compute dtype.
        arguments: The block's other arguments (masks, positions, rotary tables), without a cache.
    """

    hidden: Tensor
    arguments: Mapping[str, Any]

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

    def first_inputs(self) -> list[Batch]:
        """Return the inputs of block 0 for every batch, by running only the embedding."""
        batches: list[Batch] = []
        device = next(self.model.parameters()).device

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            kept = {key: value for key, value in kwargs.items() if key != "past_key_values"}
            batches.append(Batch(hidden.detach(), kept))
            raise _FirstBlockReached

        handle = self.layout.blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            for start in range(0, len(self.windows), self.batch_size):
                ids = self.windows[start : start + self.batch_size].to(device)
                with torch.no_grad():
                    try:
                        self.model(input_ids=ids, use_cache=False)
                    except _FirstBlockReached:
                        continue
        finally:
            handle.remove()
        return batches

    def run_block(self, index: int, batch: Batch) -> Tensor:
        """Return the output hidden state of block ``index``: (windows, length, hidden)."""
        output = self.layout.blocks[index](batch.hidden, **batch.arguments)
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
def watch_inputs(
    modules: Mapping[str, nn.Module], seen: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call ``seen(name, rows)`` with the (tokens, in) inputs of each module in the context."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen(name, args[0].detach().flatten(0, -2))

        return hook

    handles = [
        module.register_forward_pre_hook(hook_for(name)) for name, module in modules.items()
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
