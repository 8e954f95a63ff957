"""Who reads whose output, seen by running a model on a few tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.models.structure import Structure
from autocomp.models.weights import is_norm


@dataclass(frozen=True)
class Wiring:
    """What passes its output to what, tensor by tensor.

    Args:
        norms: By linear (an untied head included), the norm whose output it reads; linears that
            read something else are absent.
        outputs: By sub-block, the module whose output joins the residual stream: the attention or
            the MLP itself, the last linear of an MLP that is no module (OPT), or the norm behind
            either (Gemma 3).
    """

    norms: Mapping[str, str]
    outputs: Mapping[str, str]


def probe_tokens(parts: Structure, windows: int = 1, length: int = 8) -> Tensor:
    """Return some token ids but 0, which often means padding, (windows, length) int64."""
    table = parts.head_weight()
    count = torch.arange(windows * length, device=table.device)
    return (1 + count % (table.shape[0] - 1)).view(windows, length)


@torch.no_grad()
def trace(parts: Structure) -> Wiring:
    """Run a model once and note which linear or norm is given a tensor that another module made.

    Args:
        parts: A model with weights, none of whose sub-blocks is bypassed.
    """
    modules = dict(parts.model.named_modules())
    norms = {name for name, module in modules.items() if is_norm(module)}
    whole = {
        name: name if name in modules else linears[-1] for name, linears in parts.members.items()
    }
    linears = parts.reads().keys()
    made: dict[tuple[int, int], tuple[str, Tensor]] = {}
    read: dict[str, str] = {}

    def makes(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor: Tensor = output[0] if isinstance(output, tuple) else output
            made[_place(tensor)] = name, tensor  # held, so that its memory is not used again

        return hook

    def takes(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, args: Any) -> None:
            if maker := made.get(_place(args[0])):
                read[name] = maker[0]

        return hook

    handles = [
        *(modules[name].register_forward_hook(makes(name)) for name in norms),
        *(modules[module].register_forward_hook(makes(name)) for name, module in whole.items()),
        *(modules[name].register_forward_pre_hook(takes(name)) for name in (*norms, *linears)),
    ]
    try:
        parts.model(input_ids=probe_tokens(parts), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    behind = {maker: norm for norm, maker in read.items() if norm in norms and maker in whole}
    return Wiring(
        norms={name: read[name] for name in linears if read.get(name) in norms},
        outputs=whole | behind,
    )


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return what tells a tensor from all others that are alive, and from what it was before."""
    return tensor.data_ptr(), tensor._version
