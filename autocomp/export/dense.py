"""The ``hf`` format: dense safetensors that plain transformers loads. It saves no bytes."""

import shutil
from pathlib import Path

import torch

from autocomp.core.errors import UnsupportedError
from autocomp.core.spec import NATIVE_ONLY
from autocomp.cost.bytes import is_bypassed
from autocomp.formats.base import torch_dtype
from autocomp.layers.linear import CompressedModule
from autocomp.layers.native import (
    EXTRA_FILE,
    WEIGHTS_FILE,
    empty_model,
    load,
    misshapen,
    native_sketch,
    read_plan,
    storage_dtype,
)
from autocomp.models.weights import get_weight, set_weight

NOT_COPIED = {"config.json", "README.md", WEIGHTS_FILE, EXTRA_FILE}


@torch.no_grad()
def write_dense(artefact: Path, folder: Path) -> None:
    """Write the decoded weights of a native folder with its config, tokenizer and plan.

    A bypassed sub-block becomes one whose weights and biases are all zero, which adds nothing to
    the residual stream.

    Args:
        artefact: The native folder.
        folder: An existing empty folder.

    Raises:
        UnsupportedError: If its MLPs differ in width or got biases, linears round their inputs,
            or caches are compressed, which the config of plain transformers cannot say.
    """
    if names := misshapen(artefact):
        raise UnsupportedError(
            f"the hf format has one width for all MLPs and no place for added biases, but "
            f"{len(names)} MLPs of this model were cut otherwise: {', '.join(names[:4])}"
            f"{', …' if len(names) > 4 else ''}. Export it as native, or choose a plan of the "
            "base or of a variant with one width."
        )
    sketch, plan = native_sketch(artefact), read_plan(artefact)
    stored = [s.name for s in sketch.weights() if not is_bypassed(sketch, plan, s.name)]
    for name, spec in plan.layers.items():
        if slots := NATIVE_ONLY & {part.slot for part in spec.filled()}:
            raise UnsupportedError(
                f"the hf format holds dense weights and cannot express the {min(slots)} slot of "
                f"{name} ({spec.token()}). Export it as native, or choose a plan without it."
            )
    dtype = torch_dtype(storage_dtype(artefact))
    packed = load(artefact, dtype=dtype)
    model = empty_model(artefact, dtype).to_empty(device="cpu")
    model.tie_weights()
    for parameter in model.parameters():
        parameter.zero_()
    state = model.state_dict()
    for name in stored:
        module = packed.get_submodule(name)
        if isinstance(module, CompressedModule):
            set_weight(model, name, module.compressed().to_dense())
        else:
            set_weight(model, name, get_weight(packed, name))
    for name, tensor in packed.state_dict().items():
        if name in sketch.rest:
            state[name].copy_(tensor)
    model.save_pretrained(folder)
    for file in artefact.iterdir():
        if file.is_file() and file.name not in NOT_COPIED:
            shutil.copy2(file, folder)
