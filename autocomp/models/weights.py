"""Weights as (out, in) matrices, whatever layout the module stores them in."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autocomp.core.errors import PlanError


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by one weight matrix: ``nn.Linear`` or GPT-2's ``Conv1D``."""
    return isinstance(module, nn.Linear | Conv1D)


def is_norm(module: nn.Module) -> bool:
    """Whether a module holds one vector as its weight: a LayerNorm or an RMSNorm."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1


def embedding_scale(module: nn.Module) -> float:
    """Return what an embedding multiplies its rows by: the root of the width in Gemma, else 1."""
    return float(getattr(module, "scalar_embed_scale", 1.0))


def get_weight(model: nn.Module, name: str) -> Tensor:
    """Return a module's weight as an (out, in) view; ``Conv1D``, stored (in, out), is transposed.

    Args:
        model: Any model.
        name: Full module name of a linear or an embedding.
    """
    module: Any = model.get_submodule(name)
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def as_stored(module: nn.Module, dense: Tensor) -> Tensor:
    """Return an (out, in) matrix as a linear stores it: a view, which gradients pass."""
    return dense.T if isinstance(module, Conv1D) else dense


@torch.no_grad()
def set_weight(model: nn.Module, name: str, dense: Tensor) -> None:
    """Copy an (out, in) matrix into a module in place; tied weights stay tied.

    Args:
        model: Any model.
        name: Full module name of a linear or an embedding.
        dense: (out, in), any float dtype and device; cast to those of the module.

    Raises:
        PlanError: If the shape is not the module's.
    """
    weight = get_weight(model, name)
    if weight.shape != dense.shape:
        raise PlanError(
            f"{name}: the weight has shape {tuple(weight.shape)}, got {tuple(dense.shape)}."
        )
    weight.copy_(dense)
