"""The gradient of the divergence with respect to what a plan computes with, a batch at a time.

For a linear ``y = Ŵ x`` with loss gradient ``g`` at its output, ``∂loss/∂Ŵ = Σ g xᵀ``, of the
inputs that the linear is given before an input step of its own changes them. For a sub-block that
adds ``y`` to the residual stream, ``−⟨g, y⟩`` is the first-order change of dropping it. No weight
needs a gradient of its own, so nothing of the size of the model is kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from autocomp.calibrate.walker import watch_inputs, watch_outputs
from autocomp.evaluate.divergence import DivergenceMeter


@dataclass(frozen=True)
class Watched:
    """What a pass looks at.

    Args:
        linears: Linear modules by site name.
        reads: Name of the input of each, equal where linears read the same tensor.
        subblocks: Modules whose output is added to the residual stream, by site name.
    """

    linears: Mapping[str, nn.Module]
    reads: Mapping[str, str]
    subblocks: Mapping[str, nn.Module]


def backward_pass(
    meter: DivergenceMeter,
    model: PreTrainedModel,
    windows: Sequence[int],
    head_token: str,
    watched: Watched,
    seen: Callable[[str, Tensor], None],
) -> tuple[float, dict[str, float]]:
    """Backpropagate the mean KL of some windows, read in one pass.

    Args:
        meter: The reference on the windows.
        model: The candidate; no parameter of it needs a gradient.
        windows: Indices of windows.
        head_token: Spec token of the candidate's head.
        watched: What is looked at.
        seen: Told ``∂loss/∂Ŵ`` (out, in) of each linear, fp32, in backward order.

    Returns:
        The mean KL, nats a token, the floor included, and the first-order change of dropping each
        sub-block.
    """
    inputs: dict[str, Tensor] = {}
    dropped = dict.fromkeys(watched.subblocks, 0.0)
    readers = {watched.reads[name]: module for name, module in watched.linears.items()}

    def on_gradient(name: str, output: Tensor, gradient: Tensor) -> None:
        if name in dropped:
            dropped[name] -= (output.float() * gradient.float()).sum().item()
        else:
            seen(name, (gradient.T @ inputs[watched.reads[name]]).float())

    with ExitStack() as hooks:
        hooks.enter_context(_leaf(model.get_input_embeddings()))
        hooks.enter_context(watch_inputs(readers, inputs.__setitem__))
        outputs = {**watched.linears, **watched.subblocks}
        hooks.enter_context(watch_outputs(outputs, on_gradient))
        loss = meter.backward(model, windows, head_token)
    return loss, dropped


@contextmanager
def _leaf(embedding: nn.Module) -> Iterator[None]:
    """Let the graph begin at what an embedding returns."""

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output.detach().requires_grad_(True)

    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
