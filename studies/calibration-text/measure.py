"""What the calibration text changes: uniform GPTQ, measured on several held-out texts.

``python studies/calibration-text/measure.py TEXT.txt`` compresses the reference model with each
calibration text, bit width and seed, and writes a row a measurement to ``results/measured.json``.
Rows that are there are not measured again.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import load_config
from autocomp.data import load_corpus, windows
from autocomp.evaluate.divergence import BaseReference, DivergenceMeter
from autocomp.layers.native import load as load_native
from autocomp.models import load
from autocomp.models.device import body_dtype
from autocomp.search.result import versions
from autocomp.search.run import compress_uniform

MODEL = "smollm2-135m"
CORPUS = "pydoc"
RUNS = (  # calibration text, bits, seed; a corpus is the same text for every seed
    ("corpus", 3, 0),
    ("selfgen-t1", 3, 0),
    ("mix:selfgen-t1", 3, 0),
    ("corpus", 4, 0),
    ("selfgen-t1", 4, 0),
    ("mix:selfgen-t1", 4, 0),
    ("selfgen-t1", 3, 1),
    ("mix:selfgen-t1", 3, 1),
    ("selfgen-t1", 3, 2),
    ("mix:selfgen-t1", 3, 2),
)
WINDOW = 512
CALIBRATION_TOKENS = 16384
HELDOUT_TOKENS = 8192
BATCH = 4
CPU = torch.device("cpu")


def meters(texts: dict[str, str]) -> dict[str, DivergenceMeter]:
    """Return a meter against the dense model on the held-out part of each text."""
    base = load(MODEL, dtype=body_dtype(CPU))
    found = {}
    for label, corpus in texts.items():
        text = windows(
            load_corpus(corpus), "heldout", base.tokenizer, tokens=HELDOUT_TOKENS, length=WINDOW
        )
        found[label] = DivergenceMeter(BaseReference(base.model, text.input_ids, BATCH))
    return found


def measure(
    calibration: str, bits: int, seed: int, held: dict[str, DivergenceMeter], listener: Any
) -> list[dict[str, Any]]:
    """Compress once and return a row a held-out text."""
    settings = {
        "model": MODEL,
        "seed": seed,
        "device": "cpu",
        "data.corpus": CORPUS,
        "data.calibration": calibration,
        "data.calibration_tokens": CALIBRATION_TOKENS,
        "data.window": WINDOW,
        "search.finish": "none",
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        out = compress_uniform(
            load_config(None, settings),
            linear=f"gptq-w{bits}g64",
            embedding=None,
            out=Path(folder) / "model",
            progress=listener,
        )
        seconds = time.perf_counter() - begun
        model = load_native(out, dtype=body_dtype(CPU))
    for label, meter in held.items():
        count = len(meter.reference.windows)
        scores = meter.measure(model, range(count), head_token="dense")
        kl = scores.kl_nats
        rows.append(
            {
                "calibration": calibration,
                "linear": f"gptq-w{bits}g64",
                "seed": seed,
                "heldout": label,
                "kl_nats": statistics.fmean(kl),
                "kl_se": statistics.stdev(kl) / count**0.5,
                "nll_nats": statistics.fmean(scores.nll_nats),
                "base_nll_nats": statistics.fmean(meter.reference.nll_nats()),
                "window_kl": list(kl),
                "compress_s": seconds,
            }
        )
    return rows


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", help="a .txt or .jsonl of another domain; its last third is read")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "measured.json"
    )
    parser.add_argument("--label", default="text", help="what rows call the text")
    parser.add_argument("--minutes", type=float, default=60, help="start no run after these")
    arguments = parser.parse_args()
    quiet_libraries()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    if arguments.out.exists():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    done = {(row["calibration"], row["linear"], row["seed"]) for row in rows}
    held = meters({CORPUS: CORPUS, arguments.label: arguments.text})
    settings = {
        "model": MODEL,
        "corpus": CORPUS,
        "window": WINDOW,
        "calibration_tokens": CALIBRATION_TOKENS,
        "heldout_tokens": HELDOUT_TOKENS,
        "threads": torch.get_num_threads(),
    }
    with progress() as listener:
        for calibration, bits, seed in RUNS:
            if (calibration, f"gptq-w{bits}g64", seed) in done:
                continue
            if time.monotonic() - begun > 60 * arguments.minutes:
                break
            rows += measure(calibration, bits, seed, held, listener)
            record = {"settings": settings, "versions": versions(), "rows": rows}
            part = arguments.out.with_suffix(".partial")
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            part.replace(arguments.out)
            for row in rows[-len(held) :]:
                listener.log(
                    f"{row['calibration']} {row['linear']} seed {row['seed']} on {row['heldout']}:"
                    f" KL {row['kl_nats']:.4f} ± {row['kl_se']:.4f}"
                )


if __name__ == "__main__":
    main()
