"""Cutting the MLPs of a model narrower; the same on real weights and on the meta device.

All linears of an MLP read the residual stream but the last, which writes it. Inner channel ``j``
is column ``j`` of that last linear and row ``j`` of each of the others, in a fused reader row
``j`` of every part.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from autocomp.core.errors import PlanError, UnsupportedError
from autocomp.core.method import Edit
from autocomp.models.structure import Structure, structure

CONFIG_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")


@dataclass(frozen=True, slots=True)
class MlpShape:
    """What an edit can change of an MLP's shape.

    Args:
        width: Inner channels.
        bias: Whether its output linear has a bias.
    """

    width: int
    bias: bool


Shapes = Mapping[str, MlpShape]


def mlp_shapes(model: PreTrainedModel) -> dict[str, MlpShape]:
    """Return the shape of every MLP by name."""
    parts = structure(model)
    return {name: _shape(parts, name) for name in parts.mlp_names}


def shapes_to_json(shapes: Shapes) -> dict[str, Any]:
    """Return shapes as JSON."""
    return {name: asdict(shape) for name, shape in shapes.items()}


def shapes_from_json(data: Mapping[str, Mapping[str, Any]]) -> dict[str, MlpShape]:
    """Return shapes of their JSON form."""
    return {
        name: MlpShape(int(value["width"]), bool(value["bias"])) for name, value in data.items()
    }


@torch.no_grad()
def cut(model: PreTrainedModel, edit: Edit) -> None:
    """Cut a model in place and tell its config the width if all MLPs have one.

    Args:
        model: A decoder with its linears unpacked, on any device, the meta device included.
        edit: Which inner channels stay, and the biases to add.

    Raises:
        PlanError: If the edit names an MLP or a linear that is not there, or no channel stays.
        UnsupportedError: If an MLP's linears do not share their inner channels.
    """
    parts = structure(model)
    modules = dict(model.named_modules())
    outputs = {parts.linears(name)[-1] for name in parts.mlp_names}
    for name in (*(edit.kept.keys() - set(parts.mlp_names)), *(edit.bias.keys() - outputs)):
        raise PlanError(f"the edit is for another model: {name!r} is no MLP, or no MLP's output.")
    for name, kept in edit.kept.items():
        if not len(kept):
            raise PlanError(f"{name}: an MLP keeps at least one channel.")
        readers: list[Any] = [parts.get(linear) for linear in parts.linears(name)]
        output = readers.pop()
        width = _matrix(output).shape[1]
        for reader in readers:
            _keep_rows(name, reader, kept, width)
        _set(output, _matrix(output)[:, kept.to(_matrix(output).device)], output.bias)
        mlp: Any = modules.get(name)
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = len(kept)
    for linear, extra in edit.bias.items():
        module: Any = parts.get(linear)
        extra = extra.to(_matrix(module))
        _set(module, _matrix(module), extra if module.bias is None else module.bias + extra)
    widths = {_shape(parts, name).width for name in parts.mlp_names}
    for key in CONFIG_WIDTHS:
        if len(widths) == 1 and hasattr(model.config, key):
            setattr(model.config, key, *widths)


def reshape(model: PreTrainedModel, shapes: Shapes) -> None:
    """Give the MLPs of an empty model (on the meta device) other shapes, in place.

    Args:
        model: The model of a config, which says the width before anything was cut.
        shapes: Shape of each MLP; those left out stay.

    Raises:
        PlanError: If there is no such MLP.
    """
    parts = structure(model)
    kept, bias = {}, {}
    for name in shapes.keys() & set(parts.mlp_names):
        output = parts.linears(name)[-1]
        kept[name] = torch.arange(shapes[name].width, device="meta")
        if shapes[name].bias and not _shape(parts, name).bias:
            bias[output] = torch.empty(_matrix(parts.get(output)).shape[0], device="meta")
    for name in shapes.keys() - kept.keys():
        raise PlanError(f"the shapes are for another model: it has no MLP called {name!r}.")
    cut(model, Edit(kept, bias))


def _shape(parts: Structure, name: str) -> MlpShape:
    """Return the shape of one MLP."""
    output = parts.get(parts.linears(name)[-1])
    return MlpShape(_matrix(output).shape[1], output.bias is not None)


def _keep_rows(name: str, reader: Any, kept: Tensor, width: int) -> None:
    """Keep rows of a linear that makes inner channels, in each part if it is fused."""
    weight = _matrix(reader)
    parts, rest = divmod(weight.shape[0], width)
    if rest:
        raise UnsupportedError(
            f"{name}: {weight.shape[0]} rows do not make {width} inner channels, so it cannot be "
            "cut. Leave variants out for this model."
        )
    kept = kept.to(weight.device)
    rows = torch.cat([kept + part * width for part in range(parts)])
    _set(reader, weight[rows], None if reader.bias is None else reader.bias[rows])


def _matrix(module: Any) -> Tensor:
    """Return a linear's weight as (out, in)."""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def _set(module: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give a linear another weight (out, in) and bias (out,), and its attributes their shape."""
    grad = module.weight.requires_grad
    if isinstance(module, Conv1D):
        module.nf, module.nx = weight.shape
        weight = weight.T
    else:
        module.out_features, module.in_features = weight.shape
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=grad)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().contiguous(), requires_grad=grad)
