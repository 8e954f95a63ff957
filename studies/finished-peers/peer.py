"""Quantize a folder with auto-round, uniformly or by AutoScheme; runs where it is installed.

python peer.py MODEL_FOLDER FOLDER OUT.safetensors --bits 3
python peer.py MODEL_FOLDER FOLDER OUT.safetensors --average-bits 3.297

``FOLDER`` is what ``measure.py windows`` wrote. The dequantized linears are saved.
"""

import argparse
import importlib.metadata
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# It keeps scores by settings, not by model: a fresh folder, so that nothing is read from before.
os.environ["AR_AUTO_SCHEME_CACHE"] = tempfile.mkdtemp()

from auto_round import AutoRound, AutoScheme, calib_dataset
from auto_round.schemes import QuantizationScheme

GROUP = 64
LEVELS = (2, 3, 4, 5, 6)


def main() -> None:
    """Run auto-round on the given windows of tokens, (n, length) int64."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out")
    parser.add_argument("--bits", type=int)
    parser.add_argument("--average-bits", type=float, help="of codes, scales and zeros")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--windows", type=int, default=2, help="a step")
    parser.add_argument("--scored-windows", type=int, default=8, help="that AutoScheme reads")
    asked = parser.parse_args()
    windows = load_file(asked.folder / "windows.safetensors")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(asked.model)
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    # It takes the name of a dataset alone where it scores: this is the only way to given tokens.
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows]
    calib_dataset.get_dataset = lambda *settings: rows[: settings[-1]]
    begun, cpu = time.perf_counter(), time.process_time()
    if asked.bits:
        how = {"bits": asked.bits, "group_size": GROUP, "sym": False}
    else:
        options = [QuantizationScheme(bits=b, group_size=GROUP, sym=False) for b in LEVELS]
        how = {
            "scheme": AutoScheme(
                avg_bits=asked.average_bits,
                options=options,
                nsamples=asked.scored_windows,
                seqlen=windows.shape[1],
                batch_size=1,
                enable_torch_compile=False,
                low_gpu_mem_usage=False,
                low_cpu_mem_usage=False,
            )
        }
    rounder = AutoRound(
        model,
        tokenizer,
        dataset="given",
        iters=asked.steps,
        batch_size=asked.windows,
        nsamples=len(windows),
        seqlen=windows.shape[1],
        enable_torch_compile=False,
        amp=False,
        **how,
    )
    rounded, _ = rounder.quantize()
    linears = {
        name: module
        for name, module in rounded.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    weights = {f"{n}.weight": m.weight.detach().float().contiguous() for n, m in linears.items()}
    bits = {
        name: int(getattr(module, "bits", asked.bits or 0)) for name, module in linears.items()
    }
    true = sum(
        w.numel() * (bits[n[:-7]] * (1 + 1 / GROUP) + 16 / GROUP) for n, w in weights.items()
    )
    facts = {
        "true_bits": true / sum(w.numel() for w in weights.values()),
        "levels": dict(sorted(Counter(bits.values()).items())),
        "seconds": time.perf_counter() - begun,
        "cpu_s": time.process_time() - cpu,
        "peer_versions": {
            name: importlib.metadata.version(name)
            for name in ("auto-round", "torch", "transformers")
        },
    }
    save_file(weights, asked.out, metadata={"facts": json.dumps(facts)})
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
