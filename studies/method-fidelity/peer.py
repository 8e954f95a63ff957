"""Quantize all linears with a peer and save what they multiply with; runs where it is installed.

``python peer.py hqq|gptq|awq|auto-round FOLDER --bits 4 3 2 --group 64``; ``FOLDER`` is what
``measure.py --export`` wrote and gets ``<tool>-w<bits>g<group>.safetensors``. ``gptq`` and ``awq``
are those of llm-compressor.
"""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGES = {
    "hqq": "hqq",
    "gptq": "llmcompressor",
    "awq": "llmcompressor",
    "auto-round": "auto-round",
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


def with_llm_compressor(
    asked: argparse.Namespace, bits: int, model: nn.Module, windows: Tensor
) -> nn.Module:
    """Quantize with GPTQ or AWQ on asymmetric groups."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from datasets import Dataset
    from llmcompressor import oneshot
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
    rows = windows.tolist()
    text = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    oneshot(
        model=model,
        dataset=text,
        recipe=recipe,
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
    )
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


TOOLS: dict[str, Callable[[argparse.Namespace, int, nn.Module, Tensor], nn.Module]] = {
    "hqq": with_hqq,
    "gptq": with_llm_compressor,
    "awq": with_llm_compressor,
    "auto-round": with_auto_round,
}


def main() -> None:
    """Quantize at each width; all parameters but the embedding are saved, in fp32."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group", type=int, default=64)
    asked = parser.parse_args()
    windows = load_file(asked.folder / "windows.safetensors")["input_ids"]
    package = PACKAGES[asked.tool]
    for bits in asked.bits:
        model = AutoModelForCausalLM.from_pretrained(asked.folder / "model", dtype=torch.float32)
        names = set(linears(model))
        begun = time.perf_counter()
        made = TOOLS[asked.tool](asked, bits, model, windows)
        sides = 32 if asked.tool == "hqq" else 16 + bits
        facts = {
            "row": f"{asked.tool}-w{bits}g{asked.group}",
            "version": f"{package} {importlib.metadata.version(package)}",
            "bits_a_weight": bits + sides / asked.group,
            "seconds": round(time.perf_counter() - begun, 1),
        }
        kept = {
            name: value.detach().float().contiguous()
            for name, value in made.named_parameters()
            if name.removesuffix(".weight") in names or name.endswith("norm.weight")
        }
        path = asked.folder / f"{facts['row']}.safetensors"
        save_file(kept, path, metadata={"facts": json.dumps(facts)})
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
