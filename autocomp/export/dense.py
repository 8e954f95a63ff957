"""The ``hf`` format: dense safetensors that plain transformers loads. It saves no bytes."""

import shutil
from pathlib import Path

import torch

from autocomp.formats.base import torch_dtype
from autocomp.layers.native import (
    EXTRA_FILE,
    WEIGHTS_FILE,
    empty_model,
    load,
    native_sketch,
    storage_dtype,
)
from autocomp.models.weights import set_weight

NOT_COPIED = {"config.json", "README.md", WEIGHTS_FILE, EXTRA_FILE}


@torch.no_grad()
def write_dense(artefact: Path, folder: Path) -> None:
    """Write the decoded weights of a native folder with its config, tokenizer and plan.

    A bypassed sub-block becomes one whose weights and biases are all zero, which adds nothing to
    the residual stream.

    Args:
        artefact: The native folder.
        folder: An existing empty folder.
    """
    dtype = torch_dtype(storage_dtype(artefact))
    packed, sketch = load(artefact, dtype=dtype), native_sketch(artefact)
    model = empty_model(artefact, dtype).to_empty(device="cpu")
    model.tie_weights()
    for parameter in model.parameters():
        parameter.zero_()
    modules, state = dict(packed.named_modules()), model.state_dict()
    for site in sketch.weights():
        if site.name in modules:
            set_weight(model, site.name, modules[site.name].weight)
    for name, tensor in packed.state_dict().items():
        if name in sketch.rest:
            state[name].copy_(tensor)
    model.save_pretrained(folder)
    for file in artefact.iterdir():
        if file.is_file() and file.name not in NOT_COPIED:
            shutil.copy2(file, folder)
