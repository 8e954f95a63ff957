"""Export of an artefact: written beside its place, reloaded, compared, and only then put there."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from autocomp.core.errors import ConfigError, ExportError
from autocomp.core.registry import nearest
from autocomp.cost.bytes import weight_bytes
from autocomp.export.card import write_card
from autocomp.export.dense import write_dense
from autocomp.formats.base import torch_dtype
from autocomp.layers.folder import atomic_folder, is_occupied
from autocomp.layers.linear import CompressedModule
from autocomp.layers.native import (
    WEIGHTS_FILE,
    load,
    native_sketch,
    read_plan,
    storage_dtype,
)

PROBE_TOKENS = 64
MAX_KL_NATS = {"native": 0.0, "hf": 1e-6}


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Args:
        folder: Where.
        format: ``native`` or ``hf``.
        weight_bytes: Bytes of the weight files on disk.
        kl_nats: Mean KL(artefact ‖ export) on the probe, nats a token; zero when logits are equal.
    """

    folder: Path
    format: str
    weight_bytes: int
    kl_nats: float


def export_model(
    artefact: Path,
    out: Path,
    *,
    format: str = "native",
    base_model: str | None = None,
    force: bool = False,
) -> ExportReport:
    """Export a finished artefact; nothing but the artefact is read.

    Args:
        artefact: A native folder: the file that was measured.
        out: The folder to write.
        format: ``native`` (packed, for ``autocomp.load``) or ``hf`` (dense, for plain
            transformers).
        base_model: Name or id of the model that was compressed, for the model card.
        force: Replace a folder that is not empty.

    Raises:
        ConfigError: If the format is unknown or the artefact is not a native folder.
        ExportError: If ``out`` is not empty, or the written model does not compute what the
            artefact does.
        StoreError: If the artefact is damaged or ``out`` cannot be written.
    """
    if format not in EXPORT_FORMATS:
        raise ConfigError(
            f"unknown export format {format!r}.{nearest(format, list(EXPORT_FORMATS))} "
            f"Known: {', '.join(EXPORT_FORMATS)}."
        )
    artefact, out = Path(artefact), Path(out)
    read_plan(artefact)
    _check_place(artefact, out, force)
    with atomic_folder(out) as temporary:
        EXPORT_FORMATS[format](artefact, temporary)
        size = sum(file.stat().st_size for file in temporary.glob("*.safetensors"))
        kl_nats = _compare(format, temporary, artefact)
        write_card(temporary, artefact, format, base_model, size)
    return ExportReport(out, format, size, kl_nats)


def _check_place(artefact: Path, out: Path, force: bool) -> None:
    """Refuse a folder that must not be written."""
    if out.resolve() == artefact.resolve() or out.resolve() in artefact.resolve().parents:
        raise ExportError(f"{out} holds the artefact itself; choose another folder.")
    if is_occupied(out) and not force:
        raise ExportError(f"{out} is not empty; choose another folder or add --force.")


def _write_native(artefact: Path, folder: Path) -> None:
    """Copy the artefact and check the size of its weights against the prediction."""
    shutil.copytree(artefact, folder, dirs_exist_ok=True)
    predicted = weight_bytes(native_sketch(artefact), read_plan(artefact))
    size = (folder / WEIGHTS_FILE).stat().st_size
    if size != predicted:
        raise ExportError(f"{WEIGHTS_FILE} has {size} bytes, its plan predicts {predicted}.")


EXPORT_FORMATS: Mapping[str, Callable[[Path, Path], None]] = {
    "native": _write_native,
    "hf": write_dense,
}


def _compare(format: str, folder: Path, artefact: Path) -> float:
    """Reload what was written and return its mean KL from the artefact, nats a token.

    A native export must give the same logits. A dense one holds decoded weights rounded to the
    storage dtype; it must agree with the artefact rounded alike, however sensitive the model is to
    that rounding.

    Raises:
        ExportError: If it does not.
    """
    model = load(artefact, dtype=torch.float32)
    measured = expected = _logits(model)
    if format == "native":
        found = _logits(load(folder, dtype=torch.float32))
    else:
        rounding = torch_dtype(storage_dtype(artefact))
        for module in model.modules():
            if isinstance(module, CompressedModule):
                module.keep_rounded(rounding)
        expected = _logits(model)
        found = _logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    difference, limit = _kl_nats(expected, found), MAX_KL_NATS[format]
    if not difference <= limit:
        raise ExportError(
            f"the written {format} model does not compute what the artefact does: mean KL "
            f"{difference:.2e} nats a token on {len(found)} tokens, allowed {limit:.0e}. "
            "Nothing was exported."
        )
    return _kl_nats(measured, found)


def _kl_nats(expected: Tensor, found: Tensor) -> float:
    """Return the mean KL(expected ‖ found) of logits (length, vocab), nats a token."""
    if torch.equal(expected, found):
        return 0.0
    target, model = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return (target.exp() * (target - model)).sum(-1).mean().item()


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    """Return the logits, (length, vocab) fp32, of fixed tokens spread over the vocabulary."""
    limit = getattr(model.config, "max_position_embeddings", PROBE_TOKENS)
    length = min(PROBE_TOKENS, limit)
    tokens = (torch.arange(length) * 7919 + 1) % model.config.vocab_size
    logits: Tensor = model.eval()(tokens[None], use_cache=False).logits[0].float()
    return logits
