"""Quantize a folder with auto-round and save the dequantized linears; runs where it is installed.

python peer.py MODEL_FOLDER TOKENS.safetensors OUT.safetensors --bits 3 --steps 25
"""

import argparse
import importlib.metadata
import json
import time

import torch
from auto_round import AutoRound
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Run auto-round on given windows of tokens, (n, length) int64."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--windows", type=int, default=2)
    asked = parser.parse_args()
    windows = load_file(asked.tokens)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(asked.model)
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    begun, cpu = time.perf_counter(), time.process_time()
    rounder = AutoRound(
        model,
        tokenizer,
        bits=asked.bits,
        group_size=asked.group_size,
        sym=False,
        iters=asked.steps,
        batch_size=asked.windows,
        nsamples=len(windows),
        seqlen=windows.shape[1],
        dataset=list(windows.split(asked.windows)),
        enable_torch_compile=False,
    )
    rounded, _ = rounder.quantize()
    facts = {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("auto-round", "torch", "transformers")
        },
    }
    weights = {
        f"{name}.weight": module.weight.detach().float().contiguous()
        for name, module in rounded.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    save_file(weights, asked.out, metadata={"facts": json.dumps(facts)})
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
