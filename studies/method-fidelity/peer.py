"""Compress all linears with a peer and save what they multiply with; runs where it is installed.

``python peer.py hqq|gptq|awq|auto-round FOLDER --bits 4 3 2 --group 64`` quantizes and
``python peer.py sparsegpt|wanda|modelopt FOLDER --masks s50 2:4`` prunes; ``FOLDER`` is what
``measure.py --export`` wrote and gets ``<tool>-w<bits>g<group>.safetensors`` or
``<tool>-<mask>.safetensors``. ``gptq``, ``awq``, ``sparsegpt`` and ``wanda`` are those of
llm-compressor; ``modelopt`` is its SparseGPT, which makes 2:4 alone.
"""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGES = {
    "hqq": "hqq",
    "gptq": "llmcompressor",
    "awq": "llmcompressor",
    "auto-round": "auto-round",
    "sparsegpt": "llmcompressor",
    "wanda": "llmcompressor",
    "modelopt": "nvidia-modelopt",
}
STEPS = 100
"""Of auto-round, whose default is 200."""


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linears of the blocks by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def with_hqq(asked: argparse.Namespace, bits: int, model: nn.Module, windows: Tensor) -> nn.Module:
    """Quantize with HQQ: real scales and zeros, 16 bits each."""
    from hqq.core.quantize import Quantizer

    options = {"nbits": bits, "group_size": asked.group, "axis": 1, "device": "cpu"}
    for module in linears(model).values():
        codes, meta = Quantizer.quantize(
            module.weight.detach(), compute_dtype=torch.float32, **options
        )
        module.weight.data = Quantizer.dequantize(codes, meta).float()
    return model


def with_recipe(recipe: list, model: nn.Module, windows: Tensor) -> None:
    """Run modifiers of llm-compressor, which walks the blocks as compressed so far."""
    from datasets import Dataset
    from llmcompressor import oneshot

    rows = windows.tolist()
    text = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    oneshot(
        model=model,
        dataset=text,
        recipe=recipe,
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
    )


def with_llm_compressor(
    asked: argparse.Namespace, bits: int, model: nn.Module, windows: Tensor
) -> nn.Module:
    """Quantize with GPTQ or AWQ on asymmetric groups."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=False, strategy="group", group_size=asked.group
    )
    how = {
        "config_groups": {"all": QuantizationScheme(targets=["Linear"], weights=args)},
        "ignore": ["lm_head"],
    }
    recipe = [AWQModifier(), QuantizationModifier(**how)]
    if asked.tool == "gptq":
        recipe = [GPTQModifier(**how)]
    with_recipe(recipe, model, windows)
    for module in linears(model).values():
        module.weight.data = fake_quantize(
            module.weight.data, module.weight_scale, module.weight_zero_point, args
        )
    return model


def with_auto_round(
    asked: argparse.Namespace, bits: int, model: nn.Module, windows: Tensor
) -> nn.Module:
    """Quantize with auto-round on asymmetric groups."""
    from auto_round import AutoRound

    rounder = AutoRound(
        model,
        AutoTokenizer.from_pretrained(asked.folder / "model"),
        bits=bits,
        group_size=asked.group,
        sym=False,
        iters=STEPS,
        batch_size=2,
        nsamples=len(windows),
        seqlen=windows.shape[1],
        dataset=list(windows.split(2)),
        enable_torch_compile=False,
        amp=False,
    )
    return rounder.quantize()[0]


def with_llm_compressor_masks(
    asked: argparse.Namespace, mask: str, model: nn.Module, windows: Tensor
) -> nn.Module:
    """Prune with SparseGPT or Wanda at their defaults."""
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    pattern = ":" in mask
    keep, m = map(int, mask.split(":")) if pattern else (0, 0)
    modifier = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[asked.tool]
    how = {
        "sparsity": 1 - keep / m if pattern else float(mask.removeprefix("s")) / 100,
        "mask_structure": f"{m - keep}:{m}" if pattern else "0:0",
        "ignore": ["re:.*lm_head"],
    }
    with_recipe([modifier(**how)], model, windows)
    return model


def with_modelopt(
    asked: argparse.Namespace, mask: str, model: nn.Module, windows: Tensor
) -> nn.Module:
    """Prune with SparseGPT as Model Optimizer does at its defaults; 2:4 is all it offers."""
    from modelopt.torch import sparsity

    def read(read_model: nn.Module) -> None:
        for window in windows:
            read_model(window[None], use_cache=False)

    config = {
        "forward_loop": read,
        "pattern": f"{mask} sparsity",
        "device": "cpu",
        "verbose": False,
    }
    return sparsity.export(sparsity.sparsify(model, "sparsegpt", config))


Tool = Callable[[argparse.Namespace, Any, nn.Module, Tensor], nn.Module]
QUANTIZERS: dict[str, Tool] = {
    "hqq": with_hqq,
    "gptq": with_llm_compressor,
    "awq": with_llm_compressor,
    "auto-round": with_auto_round,
}
PRUNERS: dict[str, Tool] = {
    "sparsegpt": with_llm_compressor_masks,
    "wanda": with_llm_compressor_masks,
    "modelopt": with_modelopt,
}


def stored(asked: argparse.Namespace, setting: Any, weights: list[Tensor]) -> dict[str, float]:
    """Return the bits a weight of codes and their sides, or the share of weights that are zero."""
    if asked.tool in QUANTIZERS:
        sides = 32 if asked.tool == "hqq" else 16 + setting
        return {"bits_a_weight": setting + sides / asked.group}
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return {"zeros": round(zeros / sum(weight.numel() for weight in weights), 4)}


def main() -> None:
    """Compress in each setting; all parameters but the embedding are saved, in fp32."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tool", choices=(*QUANTIZERS, *PRUNERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--masks", nargs="+", default=["s50", "2:4"], help="s<percent> or N:M")
    asked = parser.parse_args()
    windows = load_file(asked.folder / "windows.safetensors")["input_ids"]
    package = PACKAGES[asked.tool]
    rows: dict[str, Any] = {f"{asked.tool}-{mask}": mask for mask in asked.masks}
    if asked.tool in QUANTIZERS:
        rows = {f"{asked.tool}-w{bits}g{asked.group}": bits for bits in asked.bits}
    for row, setting in rows.items():
        model = AutoModelForCausalLM.from_pretrained(asked.folder / "model", dtype=torch.float32)
        names = set(linears(model))
        begun = time.perf_counter()
        made = (QUANTIZERS | PRUNERS)[asked.tool](asked, setting, model, windows)
        seconds = round(time.perf_counter() - begun, 1)
        kept = {
            name: value.detach().float().contiguous()
            for name, value in made.named_parameters()
            if name.removesuffix(".weight") in names or name.endswith("norm.weight")
        }
        weights = [kept[f"{name}.weight"] for name in sorted(names)]
        facts = {
            "row": row,
            "version": f"{package} {importlib.metadata.version(package)}",
            **stored(asked, setting, weights),
            "seconds": seconds,
        }
        save_file(kept, asked.folder / f"{row}.safetensors", metadata={"facts": json.dumps(facts)})
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
