"""The native folder: packed weights, the plan, and what transformers needs to run them.

``model.safetensors`` holds the tensors of every site as ``<site>.<local name>`` and the other
parameters under their own names, in the storage dtype. Formats are not described in the file: they
follow from ``plan.json`` and the shapes in ``config.json``, which is why the size of the file is
known before it is written. A variant's config also names the width of every MLP that was cut and
whether its output has a bias.
"""

import ctypes
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.big_modeling import init_empty_weights
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from autocomp.core.errors import ConfigError, PlanError, StoreError
from autocomp.core.plan import PLAN_VERSION, Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE
from autocomp.core.variant import BASE
from autocomp.cost.bytes import is_bypassed, native_infos, native_metadata, site_layout
from autocomp.formats.base import CompressedWeight, tensor_info, torch_dtype
from autocomp.formats.io import load as load_tensors
from autocomp.formats.io import save as save_tensors
from autocomp.layers.apply import (
    attention_names,
    bypass,
    number_caches,
    replace_module,
    set_cache_use,
)
from autocomp.layers.cache import install_generation_cache, set_cache_specs
from autocomp.layers.folder import atomic_folder
from autocomp.layers.linear import (
    CompressedModule,
    Memory,
    TiedHead,
    site_embedding,
    site_linear,
)
from autocomp.layers.store import content_digest
from autocomp.models.structure import build_sketch
from autocomp.models.surgeon import (
    Shapes,
    mlp_shapes,
    reshape,
    shapes_from_json,
    shapes_to_json,
)

WEIGHTS_FILE = "model.safetensors"
PLAN_FILE = "plan.json"
EXTRA_FILE = "autocomp.json"
QUANT_METHOD = "autocomp"
SHAPES = "mlp_shapes"


def write_native(
    folder: Path,
    *,
    plan: Plan,
    sketch: Sketch,
    weights: Mapping[str, CompressedWeight],
    model: PreTrainedModel,
    rest: Mapping[str, Tensor] | None = None,
    tokenizer: Any | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a plan's model as a folder that :func:`load` reads; atomic, replacing what was there.

    Args:
        folder: The folder.
        plan: The plan; sites it does not name are dense.
        sketch: Sketch of the model.
        weights: Compressed weight of every site that no bypassed sub-block holds, dense ones
            included.
        model: The model the weights come from, without bypasses; gives the config and the other
            parameters.
        rest: Other parameters by name that replace those of the model, such as folded norms.
        tokenizer: A transformers tokenizer, or ``None``.
        extra: JSON values kept in ``autocomp.json``: where the model comes from and what was
            measured.

    Raises:
        PlanError: If a weight is missing or is not what the plan says.
        StoreError: If the folder cannot be written.
    """
    infos = native_infos(sketch, plan)
    tensors = {
        f"{site}.{local}": tensor
        for site, weight in weights.items()
        if not is_bypassed(sketch, plan, site)
        for local, tensor in weight.tensors.items()
    }
    state = model.state_dict() | dict(rest or {})
    for name in sketch.rest.keys() & infos.keys():
        tensors[name] = state[name].to(torch_dtype(infos[name].dtype))
    difference = _difference(infos, tensors)
    if difference:
        raise PlanError(f"the weights do not belong to the plan: {difference}.")
    with atomic_folder(folder) as temporary:
        metadata = native_metadata(content_digest(tensors))
        save_tensors(temporary / WEIGHTS_FILE, tensors, metadata)
        _write_json(temporary / PLAN_FILE, plan.to_json())
        _write_json(temporary / EXTRA_FILE, dict(extra or {}))
        model.config.save_pretrained(temporary)
        config = json.loads((temporary / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": QUANT_METHOD,
            "plan_version": PLAN_VERSION,
            "storage_dtype": sketch.dtype,
        }
        if plan.variant != BASE:
            config["quantization_config"][SHAPES] = shapes_to_json(mlp_shapes(model))
        config["dtype"] = sketch.dtype
        _write_json(temporary / "config.json", config)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)


def is_native(path: str | Path) -> bool:
    """Whether a path is a folder in native format."""
    config = Path(path) / "config.json"
    if not config.is_file():
        return False
    quantization = _read_json(config).get("quantization_config") or {}
    return bool(quantization.get("quant_method") == QUANT_METHOD)


def read_plan(folder: Path) -> Plan:
    """Return the plan of a native folder.

    Raises:
        ConfigError: If the folder is not a native one.
        StoreError: If the plan is damaged.
    """
    return Plan.from_json(_read_json(_existing(folder) / PLAN_FILE))


def read_extra(folder: Path) -> dict[str, Any]:
    """Return the values that :func:`write_native` was given as ``extra``.

    Raises:
        ConfigError: If the folder is not a native one.
        StoreError: If the file is damaged.
    """
    return _read_json(_existing(folder) / EXTRA_FILE)


def storage_dtype(folder: Path) -> str:
    """Return the dtype in which a native folder keeps what is not packed.

    Raises:
        ConfigError: If the folder is not a native one.
        StoreError: If its config is damaged.
    """
    quantization = _read_json(_existing(folder) / "config.json").get("quantization_config") or {}
    if quantization.get("quant_method") != QUANT_METHOD or "storage_dtype" not in quantization:
        raise StoreError(f"{folder}/config.json has no quantization_config of autocomp.")
    return str(quantization["storage_dtype"])


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    memory: Memory = "packed",
) -> PreTrainedModel:
    """Load a native folder as a transformers model that computes with its packed weights.

    Args:
        path: The folder.
        device: Where the model is put.
        dtype: Compute dtype; ``None`` is the storage dtype. On x86 processors ``bfloat16`` is the
            one that has kernels for 4- and 8-bit codes.
        memory: ``packed`` takes the memory of the file; ``decoded`` keeps dense copies, which is
            faster for many tokens at a time.

    Returns:
        The model in evaluation mode, ``generate`` included.

    Raises:
        ConfigError: If the folder is not a native one.
        StoreError: If a file is missing, damaged, or belongs to another plan.
    """
    folder = _existing(path)
    plan, stored = read_plan(folder), storage_dtype(folder)
    compute = dtype or torch_dtype(stored)
    model = empty_model(folder, compute)
    sketch = build_sketch(model, str(folder), dtype=stored)
    tensors = _checked_tensors(folder, sketch, plan)
    _place(model, sketch, plan, tensors, compute, memory)
    generation = folder / "generation_config.json"
    if generation.exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    attentions = attention_names(sketch)
    for site in sketch.subblocks():
        if plan[site.name] != DENSE:
            bypass(model, site)
    if not number_caches(model, attentions):
        set_cache_use(model, False, False)
    if set_cache_specs(model, sketch, plan):
        install_generation_cache(model)
    torch.nn.Module.to(model, device)
    if memory == "packed":
        for module in model.modules():
            if isinstance(module, CompressedModule):
                module.settle(copy=True)
        del tensors
        _trim()
    return model.eval().requires_grad_(False)


def _trim() -> None:
    """Give what was freed while loading back to the system, where the C library has a call for it.

    glibc keeps up to 64 MB at the end of its heap otherwise, as much as a small model.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def empty_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of a folder's config, cut as it says, with its parameters on meta.

    Raises:
        StoreError: If the config is damaged.
    """
    model, shapes = _plain_model(folder, dtype)
    try:
        if shapes:
            reshape(model, shapes)
    except PlanError as error:
        raise StoreError(f"{folder}/config.json does not fit its model: {error}") from error
    return model


def misshapen(folder: Path) -> list[str]:
    """Return the MLPs of a folder whose shape its config cannot say to plain transformers.

    Raises:
        StoreError: If the config is damaged.
    """
    model, shapes = _plain_model(folder, torch_dtype(storage_dtype(folder)))
    plain = mlp_shapes(model)
    return [name for name in plain if shapes.get(name, plain[name]) != plain[name]]


def _plain_model(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Shapes]:
    """Return what transformers builds of a folder's config, on meta, and what was cut."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        quantization = getattr(config, "quantization_config", {})
        shapes = shapes_from_json(quantization.get(SHAPES, {}))
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with init_empty_weights(), no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"cannot build a model from {folder}/config.json: {error}") from error
    model.tie_weights()
    return model, shapes


def native_sketch(folder: Path) -> Sketch:
    """Return the sketch of a native folder, from its config alone.

    Raises:
        ConfigError: If the folder is not a native one.
        StoreError: If its config is damaged.
    """
    stored = storage_dtype(folder)
    return build_sketch(empty_model(folder, torch_dtype(stored)), str(folder), dtype=stored)


def _checked_tensors(folder: Path, sketch: Sketch, plan: Plan) -> dict[str, Tensor]:
    """Return the tensors of a native folder, compared with its plan and its checksum."""
    path = folder / WEIGHTS_FILE
    try:
        tensors, metadata = load_tensors(path)
        difference = _difference(native_infos(sketch, plan), tensors)
        if difference:
            raise StoreError(f"{path} does not belong to {PLAN_FILE}: {difference}.")
    except (PlanError, ConfigError) as error:
        raise StoreError(f"{folder / PLAN_FILE} does not fit the model: {error}") from error
    if metadata != native_metadata(content_digest(tensors)):
        raise StoreError(f"{path} is damaged: its content does not match its checksum.")
    return tensors


def _place(
    model: PreTrainedModel,
    sketch: Sketch,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    memory: Memory,
) -> None:
    """Put the tensors into the empty model: packed sites as modules, the rest as parameters."""
    embedding_site = next(site for site in sketch.weights() if site.kind == "embedding")
    tied = all(site.kind != "head" for site in sketch.sites)
    rest = {name: tensors[name] for name in sketch.rest if name in tensors}
    for site in sketch.weights():
        if is_bypassed(sketch, plan, site.name):
            continue
        layout = site_layout(sketch, site.name, plan[site.name])
        local = {name: tensors[f"{site.name}.{name}"] for name in layout.tensors()}
        weight = CompressedWeight(layout, local)
        if site is embedding_site:
            module = site_embedding(weight, model.get_submodule(site.name), dtype, memory)
        else:
            module = site_linear(weight, rest.pop(f"{site.name}.bias", None), dtype, memory)
        replace_module(model, site.name, module)
    if tied:
        bias = model.get_output_embeddings().bias
        model.set_output_embeddings(TiedHead(model.get_submodule(embedding_site.name), bias))
    own = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in rest.items()
    }
    model.load_state_dict(own, strict=False, assign=True)


def _difference(infos: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the first difference between planned and given tensors, or an empty string."""
    for name in sorted(infos.keys() | tensors.keys()):
        if name not in tensors:
            return f"{name} is missing"
        if name not in infos:
            return f"{name} is not expected"
        found = tensor_info(tensors[name])
        if found != infos[name]:
            return (
                f"{name} is {found.dtype} {found.shape}, "
                f"expected {infos[name].dtype} {infos[name].shape}"
            )
    return ""


def _existing(path: str | Path) -> Path:
    """Return the folder, or raise when it is not a native one."""
    folder = Path(path)
    if not (folder / PLAN_FILE).is_file():
        raise ConfigError(
            f"{folder} is not a model of autocomp: it has no {PLAN_FILE}. Give the folder that "
            "'autocomp export --format native' wrote."
        )
    return folder


def _write_json(path: Path, value: Any) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} should hold a JSON object.")
    return value
