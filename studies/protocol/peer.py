"""Our perplexity and KL beside the evaluation of EvoPress, on the same windows, both in fp32.

``python peer.py EVOPRESS ROWS.jsonl BASE FOLDER [FOLDER ...]`` calls ``compute_perplexity`` and
``compute_kl_div`` of a checkout of EvoPress (Sieberling et al. 2024, arXiv 2410.14649), which work
on whole logits, and our meter, which works on none.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from autocomp.cli.libraries import quiet_libraries
from autocomp.data import protocol_windows
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.files import load_any
from autocomp.evaluate.record import hardware, versions
from autocomp.evaluate.reference import BaseReference
from autocomp.evaluate.summary import data_read, divergence_metrics

OUT = Path(__file__).parent / "results" / "peer.json"
CPU = torch.device("cpu")


def exact_kl(model: PreTrainedModel, base: PreTrainedModel, windows: torch.Tensor) -> float:
    """Return the KL from whole logits in fp64, nats a token."""
    total = 0.0
    with torch.no_grad():
        for window in windows:
            log_p, log_q = (
                torch.log_softmax(m(window[None], use_cache=False).logits[0, :-1].double(), -1)
                for m in (base, model)
            )
            total += (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean().item()
    return total / len(windows)


def main() -> None:
    """Measure every folder both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evopress", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("base")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--limit", type=int, default=8)
    asked = parser.parse_args()
    quiet_libraries()
    sys.path.insert(0, str(asked.evopress))
    from src.metrics import compute_kl_div, compute_perplexity

    base, tokenizer = load_any(asked.base, CPU, torch.float32)
    text = protocol_windows(
        "wikitext2", tokenizer, length=asked.length, file=asked.file, limit=asked.limit
    )
    data = list(text.input_ids.split(1))
    with torch.no_grad():
        logits = [base(window, use_cache=False).logits for window in data]
    meter = DivergenceMeter(BaseReference(base, text.input_ids), base)
    rows: list[dict[str, Any]] = []
    for folder in asked.folders:
        model, _ = load_any(folder, CPU, torch.float32)
        scores = meter.measure(model, range(len(data)), head_token=folder)
        read = data_read(text)
        found = divergence_metrics(scores, meter.reference.nll_nats(), text.text_bytes, read)
        rows.append(
            {
                "model": Path(folder).name,
                "kl_nats": found["kl_nats"].value,
                "kl_whole_logits_fp64": exact_kl(model, base, text.input_ids),
                "kl_evopress": float(compute_kl_div(model, data, logits)),
                "perplexity": found["perplexity"].value,
                "perplexity_evopress": compute_perplexity(model, data),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    OUT.parent.mkdir(exist_ok=True)
    described = {
        "file": asked.file.name,
        "length": asked.length,
        "windows": len(data),
        "digest": text.digest,
        "floor_nats": meter.floor_nats,
        "hardware": hardware(CPU),
        "versions": versions(),
    }
    OUT.write_text(json.dumps({**described, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
